"""A random two-layer Llama with SmolLM2's tokenizer: a real model that trains in seconds."""

import torch

from limrank import models


def make_tiny(directory, tied):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = LlamaConfig(vocab_size=49152, num_key_value_heads=2, tie_word_embeddings=tied, **shape, **ends)
    LlamaForCausalLM(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(models.resolve("smollm2-135m-instruct")).save_pretrained(directory)
    return directory
