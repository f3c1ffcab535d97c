// Decoders of GGML blocks.
