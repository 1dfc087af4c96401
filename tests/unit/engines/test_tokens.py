"""The start of a text by its number of tokens, with real tokenizers."""

import pytest

from limrank.engines.fake import ByteTokenizer
from limrank.engines.tokens import encode_text, first_tokens

TEXT = "heapq.merge yields sorted items — lazily.\n\n漢字 and 👩‍🔬, <|im_end|> and </think> are text."


@pytest.fixture(params=["bytes", "qwen"])
def tokenizer(request):
    return ByteTokenizer() if request.param == "bytes" else request.getfixturevalue("qwen_tokenizers")["marked"]


def test_a_text_that_fits_is_itself(tokenizer):
    length = len(encode_text(tokenizer, TEXT))
    assert first_tokens(tokenizer, TEXT, length) == TEXT
    assert first_tokens(tokenizer, TEXT, 10**30) == TEXT
    assert first_tokens(tokenizer, "", 1) == ""


def test_a_longer_one_is_its_start_and_has_at_most_so_many(tokenizer):
    for tokens in range(1, len(encode_text(tokenizer, TEXT))):
        start = first_tokens(tokenizer, TEXT, tokens)
        assert TEXT.startswith(start)
        assert len(start) < len(TEXT)
        assert len(encode_text(tokenizer, start)) <= tokens


def test_much_longer_text_is_not_encoded_to_its_end(tokenizer):
    class Counting:
        def __init__(self):
            self.characters = 0

        def encode(self, text, **options):
            self.characters += len(text)
            return tokenizer.encode(text, **options)

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    counting = Counting()
    assert first_tokens(counting, "merge " * 2_000_000, 2).strip() in ("merge", "merge merge", "me")
    assert counting.characters < 1_000_000
