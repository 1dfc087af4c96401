"""Writes BEIR folders: a small one, one whose documents all match, one with rare words."""

import json

CORPUS = {
    "d1": "the lazy cat sleeps on the warm roof",
    "d2": "a quick dog runs through the green park",
    "d3": "the cat and the dog share one bowl",
    "d4": "trains leave the station every hour",
}
QUERIES = {"q1": "cat roof", "q2": "dog park"}
QRELS = {"q1": {"d1": 1}, "q2": {"d2": 1}}


def write_beir(folder, corpus=CORPUS, queries=QUERIES, qrels=QRELS):
    """A BEIR folder; ids → texts, or documents' ``{"title": …, "text": …}``, and judgements as
    ``{query: {document: grade}}``."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, texts in (("corpus", corpus), ("queries", queries)):
        records = ({"_id": key} | (text if isinstance(text, dict) else {"text": text}) for key, text in texts.items())
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in records), encoding="utf-8")
    judged = [f"{query}\t{doc}\t{grade}\n" for query, grades in qrels.items() for doc, grade in grades.items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged), encoding="utf-8")
    return folder


def write_common(folder, queries, documents, words=()):
    """Every document suits every query; ``words`` make the texts longer."""
    filler = " ".join(words)
    return write_beir(
        folder,
        {f"d{n}": {"title": "", "text": f"common passage {n} {filler}"} for n in range(documents)},
        {f"q{n}": f"common need {n} {filler}" for n in range(queries)},
        {f"q{n}": {"d0": 1} for n in range(queries)},
    )


def write_rare_words(folder, queries=60, documents=30, words=40):
    """Query i shares its rare word with two documents."""
    filler = " ".join(f"filler{n}" for n in range(words))
    rare = {
        n: " ".join(f"rare{q}" for q in range(queries) if q % documents in (n, (n + 1) % documents))
        for n in range(documents)
    }
    return write_beir(
        folder,
        {f"d{n}": {"title": f"Document {n}", "text": f"{text} {filler}"} for n, text in rare.items()},
        {f"q{q}": f"rare{q}" for q in range(queries)},
        {f"q{q}": {f"d{q % documents}": 1} for q in range(queries)},
    )
