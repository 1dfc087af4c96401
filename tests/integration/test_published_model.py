"""The paper's published weights: three passages in their order. Needs a GPU and the hub."""

import pytest

MODEL = "songtingyu/limrank"


def reason_to_skip():
    import torch

    if not torch.cuda.is_available():
        return "no GPU: the 7B model is not run on a CPU"
    try:
        from limrank import models

        models.resolve(MODEL)
    except Exception as error:
        return f"the hub did not give {MODEL}: {error}"
    return None


def test_the_published_model_orders_three_passages():
    reason = reason_to_skip()
    if reason:
        pytest.skip(reason)
    from limrank import Reranker
    from limrank.config import ModelConfig

    documents = [
        "Bananas are rich in potassium and grow in tropical climates.",
        "Plants bend towards light because auxin gathers on the shaded side of the stem and cells there grow longer.",
        "A stem holds a plant's leaves towards the light.",
    ]
    model = ModelConfig(id=MODEL, dtype="bfloat16", max_model_len=4096)
    with Reranker(model, mode="think", max_think_tokens=1024) as reranker:
        ranked = reranker.rank("Why does my house plant on the window sill lean to one side?", documents)
    assert ranked[0].index == 1 and ranked[-1].index == 0
    assert ranked[0].score > 0.5 > ranked[-1].score
