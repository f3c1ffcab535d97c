#!/usr/bin/env python3
"""Collects the prose that the box model is trained on.

Two sources, both under licences that allow it (MIT or Apache-2.0):

* the HTML documentation that ships with a Rust toolchain, the standard library's sources included, and
* doc comments, comments of two lines and more, Markdown guides and changelogs of the crates that `crates.toml` and its dependencies resolve to, where the crate's SPDX
  expression is satisfied by MIT or Apache-2.0 alone.

Writes `train.jsonl.gz`, `heldout.jsonl.gz` (one `{"id", "source", "text"}` per line) and `crates.tsv` (crate, version, licence, characters kept).
The held-out set is chosen by a hash of the document's name, and no training paragraph shares 13 consecutive words with it.

    python3 corpus.py --out DIR
"""

import argparse
import collections
import gzip
import hashlib
import html
import json
import pathlib
import re
import subprocess
import sys

import lxml.html

HERE = pathlib.Path(__file__).parent
BOOKS = ["book", "reference", "nomicon", "rust-by-example", "cargo", "rustc", "rustdoc", "clippy", "edition-guide",
         "embedded-book", "style-guide", "error_codes", "unstable-book"]
RUSTDOC = ["std", "core", "alloc", "proc_macro", "test"]
# Tables of intrinsics: tens of thousands of pages of generated one-liners.
RUSTDOC_SKIP = {"arch", "core_arch", "core_simd", "simd", "intrinsics", "legacy_int_modules", "stdarch", "portable-simd"}
# Generated bindings: their comments describe C, web or operating-system interfaces, one template each.
CRATE_SKIP = re.compile(r"^(windows|winapi|web-sys|js-sys|objc2?|libc|ash|metal|naga-types|icu_|aws-lc|linux-raw-sys|jni|ndk|wayland-|x11|xcb|drm|gl_generator"
                        r"|glow|khronos|vulkan|unicode-|encoding|core_arch|safe_arch|stdarch|wasi|r-efi|hermit|redox|.*-sys$|.*_sys$)")
NO_CHAPTER = {"print.html", "toc.html", "index.html", "SUMMARY.html", "README.html", "404.html"}
NGRAM = 13
STOP = set("the a an of to in is are be been was were it its this that these those and or not for with as by on at from if when which can "
           "will may must should has have had do does you we they there than then into but no any all each so such only more also".split())


def clean_inline(text):
    for a, b in (("\u2019", "'"), ("\u2018", "'"), ("\u201c", '"'), ("\u201d", '"'), ("\u2026", "..."), ("\u00a0", " "), ("\u2011", "-"),
                 ("\u2013", "-"), ("\u200b", ""), ("\u00a7", "")):
        text = text.replace(a, b)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"\s+([.,;:!?)])(?=\s|$)", r"\1", text)


# ---------------------------------------------------------------- HTML

BLOCK = {"h1", "h2", "h3", "h4", "h5", "h6", "p", "ul", "ol", "dl", "pre", "table", "blockquote", "div", "section", "details", "aside", "figure", "hr"}


def html_inline(el):
    """The text of an element without the block elements nested in it; `code` spans keep their backticks."""
    out = [el.text or ""]
    for child in el:
        tag = child.tag if isinstance(child.tag, str) else ""
        if tag in ("sup", "script", "style", "button", "img", "svg") or tag in BLOCK or "doc-anchor" in (child.get("class") or ""):
            pass
        elif tag == "code":
            out.append("`" + re.sub(r"\s+", " ", child.text_content()).strip() + "`")
        elif tag == "br":
            out.append(" ")
        else:
            out.append(html_inline(child))
        out.append(child.tail or "")
    return "".join(out)


def html_items(ul):
    for li in ul.iterchildren("li"):
        own = html_inline(li) + " " + " ".join(html_inline(p) for p in li.iterchildren("p"))
        yield clean_inline(own)
        for nested in li.iterchildren("ul", "ol"):
            yield from html_items(nested)


def html_blocks(el):
    """Yields (kind, text) in reading order; kind is head, text, list or code."""
    for child in el:
        tag = child.tag if isinstance(child.tag, str) else ""
        cls = child.get("class") or ""
        if tag in ("nav", "script", "style", "table", "button", "svg", "img", "hr") or "footnote" in cls or "sidebar" in cls:
            continue
        if re.fullmatch("h[1-6]", tag):
            yield "head", clean_inline(html_inline(child))
        elif tag == "p":
            yield "text", clean_inline(html_inline(child))
        elif tag in ("ul", "ol"):
            yield "list", [i for i in html_items(child) if i]
        elif tag == "pre" or "example-wrap" in cls:
            for hidden in child.xpath(".//span[contains(@class,'boring')] | .//div[contains(@class,'buttons')] | .//a[contains(@class,'test-arrow')]"):
                hidden.drop_tree()
            pre = child if tag == "pre" else next(iter(child.iter("pre")), child)
            yield "code", pre.text_content().strip("\n")
        else:
            yield from html_blocks(child)


def parse_html(path):
    return lxml.html.document_fromstring(path.read_bytes(), parser=lxml.html.HTMLParser(encoding="utf-8"))


def library_sources(root):
    """The comments of the standard library's sources, which the toolchain ships as highlighted pages."""
    for crate in ("std", "core", "alloc", "proc_macro", "test"):
        for path in sorted((root / "src" / crate).rglob("*.rs.html")):
            inner = path.relative_to(root / "src" / crate)
            if inner.parts[0] in RUSTDOC_SKIP or "generated" in path.name:
                continue
            # Line numbers are anchors and everything else is spans; a parser would be slow on these pages and gain nothing.
            page = path.read_text("utf-8", "replace")
            code = page[page.find("<code>"):page.rfind("</code>")]
            code = html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<a href=#?\"?#?\d+[^>]*>\d+</a>", "", code)))
            yield f"src/{crate}/{inner.as_posix()}", "library", comment_blocks(code), False


def toolchain_documents(root):
    for book in BOOKS:
        for path in sorted((root / book).rglob("*.html")):
            name = path.relative_to(root).as_posix()
            if re.match(r"rust-by-example/(es|ja|ko|zh)/|book/.*edition/", name) or path.name in NO_CHAPTER:
                continue
            main = next(iter(parse_html(path).iter("main")), None)
            if main is not None:
                yield name, book, list(html_blocks(main)), True
    for crate in RUSTDOC:
        for path in sorted((root / crate).rglob("*.html")):
            inner = path.relative_to(root / crate)
            if inner.parts[0] in RUSTDOC_SKIP or "!" in inner.name or path.stat().st_size < 2500:
                continue
            blocks = []
            for doc in parse_html(path).xpath("//*[@id='main-content']//div[contains(concat(' ', @class, ' '), ' docblock ')]"):
                blocks += html_blocks(doc)
            kind, _, item = inner.stem.partition(".")
            if item and blocks:
                blocks.insert(0, ("head", f"{kind.capitalize()} `{item}`"))
            # std re-exports core and alloc: one page, one name, so that both copies fall on the same side of the split.
            yield "library/" + inner.as_posix(), "library", blocks, False


# ---------------------------------------------------------------- Markdown and comments

def md_inline(text):
    text = re.sub(r"<!--.*?-->", " ", text, flags=re.S)
    text = re.sub(r"\[?!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])(\](\([^)]*\)|\[[^\]]*\]))?", " ", text)
    text = re.sub(r"\[(`[^`]*`|[^\[\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\[(`[^`]*`|[^\[\]]*)\]\[[^\]]*\]", r"\1", text)
    text = re.sub(r"\[(`[^`]*`|[\w :.!&'-]+)\]", r"\1", text)
    text = re.sub(r"</?[a-zA-Z][^>`]{0,200}>(?![^`]*`[^`]*$)", "", text)
    parts = re.split(r"(`[^`]*`)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", r"\2", parts[i])
        parts[i] = re.sub(r"(?<![\w*])([*_])(?=[^\s*_])([^*_]+?)(?<=\S)\1(?!\w)", r"\2", parts[i])
        parts[i] = re.sub(r"\\([*_\[\]<>#`])", r"\1", parts[i])
    return clean_inline("".join(parts))


def md_blocks(text):
    lines, para, items = text.splitlines(), [], []
    out = []

    def flush():
        if items:
            out.append(("list", [i for i in (md_inline(" ".join(x)) for x in items) if i]))
        if para:
            out.append(("text", md_inline(" ".join(para))))
        para.clear()
        items.clear()

    i = 0
    while i < len(lines):
        line = lines[i]
        s = line.strip()
        fence = re.match(r"(```+|~~~+)", s)
        if fence:
            flush()
            j = i + 1
            while j < len(lines) and not lines[j].strip().startswith(fence.group(1)):
                j += 1
            out.append(("code", None))
            i = j + 1
            continue
        if not s:
            if not items or (i + 1 < len(lines) and not re.match(r"\s*([-*+]|\d+[.)])\s|\s{2,}\S", lines[i + 1])):
                flush()
        elif s.startswith("#"):
            flush()
            out.append(("head", md_inline(s.strip("# "))))
        elif s.startswith("|") or re.match(r"\[[^\]]+\]:", s) or s.startswith("[^") or re.fullmatch(r"[-=*_]{3,}", s) or s.startswith("<"):
            flush()
        elif re.match(r"([-*+]|\d+[.)])\s+\S", s):
            if para:
                flush()
            items.append([re.sub(r"^([-*+]|\d+[.)])\s+", "", s)])
        elif line.startswith("    ") and not para and not items:
            out.append(("code", None))
        elif items:
            items[-1].append(s)
        else:
            para.append(s.lstrip("> "))
        i += 1
    flush()
    return out


def comment_blocks(source):
    """Doc comments, and plain comments long enough to be an explanation."""
    out, run, kind = [], [], None

    def flush():
        nonlocal kind
        if run:
            text = "\n".join(run)
            plain = kind == "//"
            if not plain or (len(run) >= 2 and len(text) >= 90 and not re.search(r"copyright|licen[sc]e|SPDX|[;{}]\s*$", text, re.I | re.M)):
                out.extend(md_blocks(text))
        run.clear()
        kind = None

    for line in source.splitlines():
        m = re.match(r"\s*(//[/!]?)(?!/)\s?(.*)$", line)
        if not m:
            flush()
            continue
        if kind not in (None, m.group(1)):
            flush()
        kind = m.group(1)
        run.append(m.group(2))
    flush()
    return out


def licence_allows(expression):
    """True when an SPDX expression is satisfied by MIT or Apache-2.0 without anything else."""
    tokens = re.findall(r"[()]|[A-Za-z0-9.+-]+", (expression or "").replace("/", " OR "))

    def any_of():
        value = all_of()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            value = all_of() or value
        return value

    def all_of():
        value = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            value = one() and value
        return value

    def one():
        token = tokens.pop(0) if tokens else ""
        if token == "(":
            value = any_of()
            if tokens:
                tokens.pop(0)
            return value
        if tokens[:1] == ["WITH"]:
            del tokens[:2]
            return False
        return token in ("MIT", "Apache-2.0")

    return any_of() and not tokens


def packages(project):
    """The newest version of each allowed crate that the project resolves to, by name; fetches what is missing."""
    meta = json.loads(subprocess.run(["cargo", "metadata", "--format-version", "1"], cwd=project, check=True, capture_output=True).stdout)
    newest = {}
    for p in meta["packages"]:
        key = [int(x) for x in re.findall(r"\d+", p["version"].split("+")[0])]
        if p["source"] and licence_allows(p["license"]) and not CRATE_SKIP.match(p["name"]) and key > newest.get(p["name"], ([], None))[0]:
            newest[p["name"]] = (key, p)
    return [(name, newest[name][1]) for name in sorted(newest)]


def crate_documents(project):
    for name, p in packages(project):
        root = pathlib.Path(p["manifest_path"]).parent
        pending, first, size = [], None, 0
        guides = [p for p in sorted(root.rglob("*.md")) if not p.is_relative_to(root / "src") and p.name != "CHANGELOG.md"]
        code = [p for folder in ("src", "examples", "tests", "benches", "crates") for p in sorted((root / folder).rglob("*"))]
        logs = [root / "CHANGELOG.md"]
        for path in guides + code + logs:
            if path.suffix not in (".rs", ".md") or not path.is_file() or path.stat().st_size > 3_000_000 or "generated" in path.as_posix():
                continue
            text = path.read_text("utf-8", "replace")
            if path.name == "CHANGELOG.md":
                text = re.sub(r"\s*\(?\[?#\d+\]?\)?(\([^)]*\))?\.?", "", text[:60_000])  # references to pull requests
            blocks = comment_blocks(text) if path.suffix == ".rs" else md_blocks(text)
            if not blocks:
                continue
            first = first or path.relative_to(root).as_posix()
            pending += blocks
            size += sum(len(b[1]) for b in blocks if b[0] == "text")
            if size >= 1500:  # small files of one crate are read together, so that the end-of-text token stays rare
                yield f"crates/{name}/{first}", f"crates/{name}", pending, False
                pending, first, size = [], None, 0
        if pending:
            yield f"crates/{name}/{first}", f"crates/{name}", pending, False


# ---------------------------------------------------------------- what counts as prose

DROP = re.compile(r"Read more$|tracking issue for this feature|^Licensed under|^Copyright|^Unless you explicitly state|^SPDX|https?://\S{40,}|^TODO|^FIXME"
                  r"|^Available on|This is a nightly-only experimental API", re.I)


def is_prose(text):
    if len(text) < 24 or len(text) > 4000 or DROP.search(text):
        return False
    if sum(c.isascii() for c in text) < 0.985 * len(text):
        return False
    words = re.findall(r"[A-Za-z']+", re.sub(r"`[^`]*`", "X", text))
    if len(words) < 4 or sum(len(w) for w in words) < 0.6 * len(re.sub(r"`[^`]*`", "X", text).replace(" ", "")):
        return False
    stops = sum(w.lower() in STOP for w in words)
    if stops < (0.2 if len(words) > 8 else 0.1) * len(words):
        return False
    return bool(re.match(r"[A-Z`\"'(]", text)) and text[-1] in ".:!?)\"'`"


def render(blocks, keep_code):
    """Turns blocks into paragraphs, dropping what is not prose and the lead-ins of code that was dropped."""
    out, head = [], None
    for kind, body in blocks:
        if kind == "head":
            head = body if 2 < len(body) < 90 and body.isascii() else None
            continue
        if kind == "code":
            lines = body.splitlines() if body else []
            if keep_code and 1 <= len(lines) <= 10 and out and head is None and max(map(len, lines)) <= 80 and body.isascii():
                out.append("```\n" + body + "\n```")
            elif out and out[-1].endswith(":") and head is None:
                if len(out[-1]) < 80:
                    out.pop()
                else:
                    out[-1] = out[-1][:-1] + "."
            continue
        if kind == "list":
            items = [i for i in body if is_prose(i)]
            if len(items) < max(1, 0.6 * len(body)):
                continue
            text = "\n".join("- " + i for i in items)
        else:
            text = body
            if not is_prose(text):
                continue
        if head:
            if not re.fullmatch(r"(Examples?|Usage|Panics|Errors|Safety|License|Contribution|Contributing)", head):
                out.append("## " + head)
            head = None
        out.append(text)
    return out


def template(paragraph):
    """What is left of a paragraph when its names and numbers are taken out: generated texts that differ in these alone are one text."""
    return re.sub(r"[^a-z]+", " ", re.sub(r"`[^`]*`", " ", paragraph.lower())).strip()


def ngrams(paragraph):
    words = re.findall(r"[a-z0-9_]+", paragraph.lower())
    return {hash(tuple(words[i:i + NGRAM])) for i in range(len(words) - NGRAM + 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--project", type=pathlib.Path, help="a folder for the cargo project that fetches the crates (default: OUT/crates)")
    parser.add_argument("--heldout-percent", type=float, default=2.0)
    parser.add_argument("--crate-limit", type=int, default=700_000, help="characters kept of one crate")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    project = args.project or args.out / "crates"
    (project / "src").mkdir(parents=True, exist_ok=True)
    (project / "src/lib.rs").touch()
    (project / "Cargo.toml").write_text((HERE / "crates.toml").read_text())

    root = pathlib.Path(subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True).stdout.strip()) / "share/doc/rust/html"
    documents = []
    for stream in (toolchain_documents(root), library_sources(root), crate_documents(project)):
        for name, source, blocks, keep_code in stream:
            paragraphs = render(blocks, keep_code)
            if paragraphs:
                documents.append((name, source, paragraphs))
        print(f"{len(documents)} documents", file=sys.stderr)

    def is_heldout(name):
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < args.heldout_percent / 100 * 2**32

    exact, templates, per_source, forbidden = set(), collections.Counter(), collections.Counter(), set()
    sizes = {"heldout": 0, "train": 0}
    # Held-out documents go first: what they say may not come again in training.
    for side in ("heldout", "train"):
        with gzip.open(args.out / f"{side}.jsonl.gz", "wt", encoding="utf-8") as f:
            for name, source, paragraphs in documents:
                if is_heldout(name) != (side == "heldout"):
                    continue
                kept = []
                for p in paragraphs:
                    if p.startswith("## "):
                        if kept and kept[-1].startswith("## "):
                            kept.pop()
                        kept.append(p)
                        continue
                    key = template(p)
                    limit = 1 if len(key) > 60 else 2
                    if p in exact or templates[key] >= limit or (p.startswith("```") and not kept):
                        continue
                    grams = ngrams(p)
                    if side == "train" and not grams.isdisjoint(forbidden):
                        continue
                    if source.startswith("crates/") and per_source[source] + len(p) > args.crate_limit:
                        continue
                    if side == "heldout":
                        forbidden |= grams
                    exact.add(p)
                    templates[key] += 1 if side == "train" else limit
                    per_source[source] += len(p) + 2
                    kept.append(p)
                while kept and kept[-1].startswith("## "):
                    kept.pop()
                text = "\n\n".join(kept)
                if len(text) >= 80:
                    f.write(json.dumps({"id": name, "source": source.split("/")[0], "text": text}) + "\n")
                    sizes[side] += len(text)

    with open(args.out / "crates.tsv", "w") as f:
        f.write("crate\tversion\tlicence\tcharacters\n")
        for name, p in packages(project):
            if per_source[f"crates/{name}"]:
                f.write(f"{name}\t{p['version']}\t{p['license']}\t{per_source[f'crates/{name}']}\n")
    for source in BOOKS + ["library"]:
        print(f"{source}\t{per_source[source]}")
    print("crates", sum(n for s, n in per_source.items() if s.startswith("crates/")), sep="\t")
    print(sizes)


if __name__ == "__main__":
    main()
