"""A tiny random Qwen2 under Qwen2.5's tokenizer, whose chains are noise and end as trained ones do.

Its layers' weights are so large that what it writes hangs on every token before. Some rows of its
head are larger than chance: ``.``, ``.\\n``, ``)?\\n``, ``.\\n\\n`` and the end of text are written often,
``</think>`` now and then; a line end follows ``<think>``, and true or false follow ``</think>``.
"""

import torch

NEWLINE, TRUE, FALSE, END, THINK_OPEN, THINK_CLOSE = 198, 830, 895, 151643, 151665, 151666
ENDINGS = (13, 624, 86427, 382, END)


def make_tiny_qwen(directory, tokenizer):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    ends = {"bos_token_id": None, "eos_token_id": END, "tie_word_embeddings": False}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **shape, **heads, **ends))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers" in name and weight.dim() > 1:
                weight.normal_(std=0.15)
        opened, closed = torch.linalg.qr(torch.randn(128, 2))[0].T
        embeddings, head = model.model.embed_tokens.weight.normal_(std=0.3), model.lm_head.weight.normal_(std=0.02)
        embeddings[THINK_OPEN], embeddings[THINK_CLOSE] = 20 * opened, 20 * closed
        head[NEWLINE] += opened
        head[[TRUE, FALSE]] += closed
        head[list(ENDINGS)] *= 2.5
        head[THINK_CLOSE] *= 3
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
