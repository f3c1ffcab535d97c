"""Fixtures for chat templates: templates in the styles of published models, rendered by `jinja2` as `transformers` sets it up.

    python oracles/template_fixtures.py
"""

import datetime
import json
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

OUT = Path(__file__).resolve().parent.parent / "crates/kernelry-models/tests/fixtures/chat/templates.json"
NOW = 1_709_251_445  # 2024-03-01 00:04:05 UTC

CHATML = """{% for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = "" %}
    {%- set rest = messages %}
{%- endif %}
<|start_header_id|>system<|end_header_id|>

Today: {{ date_string }}
{% if tools is not none %}
Functions:

{% for t in tools %}
{{ t | tojson(indent=4) }}

{% endfor %}
{% endif %}
{{- system }}<|eot_id|>
{%- for message in rest %}
    {%- if 'tool_calls' in message and message.tool_calls %}
        {%- if message.tool_calls|length != 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- set call = call.function if call.function else call %}
            {{- '<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set users = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == users[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
"""

PYTHON = """{%- macro show(name, value=none, sep=': ') -%}
{{ name }}{{ sep }}{{ value }};
{% endmacro %}
{{ show('none') }}{{ show('true', true) }}{{ show('float', 1.5) }}{{ show('whole', 2.0) }}{{ show('int', 7) }}
{{- show('list', [1, 'a', none, true, [2.5]], sep=' = ') }}{{ show('dict', {'a': 1, "it's": ['x', "\\n"]}) }}
{{- undefined_name }}
{{ {'b': 1, 'a': [1.0, none, "é\\"\\n"]} | tojson }} {{ {'b': 1, 'a': {}} | tojson(sort_keys=true) }}
{{ {'b': [1, {}], 'a': []} | tojson(indent=2) }}
{{ {'k': 'é<&>\\''} | tojson(ensure_ascii=true) }} {{ [1, 2] | tojson(separators=(',', ':')) }}
{{ ' Ab c '.strip().upper() }}|{{ 'a,b,,c'.split(',') }}|{{ 'x-y'.replace('-', '+') }}|{{ 'title case'.title() }}
{{ messages[0].get('missing', 'default') }}|{{ messages[0].get('role') }}|{{ messages[0].keys() | list }}
{{ 'abc'[::-1] }}|{{ 'abc'[1:] }}|{{ [3, 1, 2] | sort | join('<') }}|{{ 7 // 2 }}|{{ 7 % 4 }}|{{ 2 ** 5 }}|{{ 7 / 2 }}
{% for k, v in {'x': 1, 'y': 2}.items() %}{{ k }}={{ v }}{{ ',' if not loop.last }}{% endfor %}

{% for i in range(6) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}

{{ strftime_now('%Y-%m-%d %H:%M:%S %A %B %j %-d %y %p %I %%') }}
{% generation %}kept{% endgeneration %}
{# a comment #}
  {% set x = 'lstrip' %}
{{ x | default('no') }} {{ y | default('fallback') }} {{ '' | default('empty', true) }} {{ x in ['lstrip'] }} {{ 'z' not in x }}
{{ x is string }} {{ 1 is number }} {{ none is none }} {{ messages is sequence }} {{ messages[0] is mapping }} {{ y is defined }}
{{ [1,2,3] | first }} {{ [1,2,3] | last }} {{ 'a' ~ 1 ~ 'b' }} {{ messages | map(attribute='role') | join(',') }} {{ 'prefix-x'.removeprefix('prefix-') }}
"""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "qwen3": QWEN3, "gemma": GEMMA, "mistral": MISTRAL, "python": PYTHON}

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather of a "place"; e.g. Zürich',
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "default": 1.0}, "precise": {"type": "boolean", "default": False}},
            "required": ["place"],
        },
    },
}
SYSTEM = {"role": "system", "content": " You are brief.\n"}
USER = {"role": "user", "content": "  Wie ist das Wetter? 天気 <b>\"'&\n"}
ANSWER = {"role": "assistant", "content": "Sunny."}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nRain."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "abcdef123", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "Zürich", "days": 2, "x": 0.1, "tiny": 1e-7, "huge": 1e20, "n": None}}}]}
RESULT = {"role": "tool", "content": "{\"t\": 21}", "tool_call_id": "abcdef123"}
PARTS = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is this? "}]}
CONVERSATIONS = {
    "user": ([USER], []),
    "system": ([SYSTEM, USER], []),
    "turns": ([SYSTEM, USER, ANSWER, USER], []),
    "thoughts": ([USER, THOUGHT, USER, THOUGHT], []),
    "reasoning": ([USER, {**ANSWER, "reasoning_content": "\nwhy\n"}], []),
    "tools": ([SYSTEM, USER], [TOOL, TOOL]),
    "call": ([USER, CALL, RESULT, RESULT, ANSWER, USER], [TOOL]),
    "two calls": ([USER, {**CALL, "tool_calls": CALL["tool_calls"] * 2}], [TOOL]),
    "parts": ([PARTS], []),
    "roles": ([USER, USER], []),
}


def strftime_now(fmt):
    return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None).strftime(fmt)


if __name__ == "__main__":
    cases = []
    for name, source in TEMPLATES.items():
        template = _compile_jinja_template(source)
        for label, (messages, tools) in CONVERSATIONS.items():
            for thinking in [None, True, False] if name == "qwen3" and label == "user" else [None]:
                variables = dict(messages=messages, tools=tools or None, add_generation_prompt=messages[-1]["role"] != "assistant")
                variables |= dict(bos_token="<s>", eos_token="</s>", strftime_now=strftime_now)
                if thinking is not None:
                    variables["enable_thinking"] = thinking
                case = {"template": name, "conversation": label, "enable_thinking": thinking}
                try:
                    case["text"] = template.render(**variables)
                except Exception as error:
                    case["error"] = str(error)
                cases.append(case)
    conversations = {k: {"messages": m, "tools": t} for k, (m, t) in CONVERSATIONS.items()}
    data = {"now": NOW, "templates": TEMPLATES, "conversations": conversations, "cases": cases}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{OUT.name}: {OUT.stat().st_size} bytes, {sum('error' in c for c in cases)} errors of {len(cases)} cases")
    for c in cases:
        if "error" in c:
            print(c["template"], c["conversation"], c["error"])
