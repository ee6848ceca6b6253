"""Whether a run over a real model kept what is promised: every product ends as an analysis that the built-in schema allows,
or as a failure of a class that such a model can earn."""

import csv
import itertools
import json
import pathlib
import sys

catalog, out, limit = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
TYPES = {
    "category": str, "subcategory": str, "tags": list, "key_attributes": list, "summary": str, "quality_score": int,
    "quality_reason": str,
}
CLASSES = {"truncated", "malformed", "schema_violation", "context_too_long", "timeout"}


def lines(name):
    path = out / name
    return [json.loads(line) for line in path.open()] if path.exists() else []


with open(catalog, newline="") as file:
    wanted = [row["id"] for row in itertools.islice(csv.DictReader(file), limit)]
results, failures = lines("enriched_products_incremental.jsonl"), lines("failed_products.jsonl")
assert sorted(line["id"] for line in results + failures) == sorted(wanted), "a product is missing, or there twice"
for line in results:
    analysis = line["analysis"]
    assert set(analysis) == set(TYPES), line
    assert all(isinstance(analysis[name], kind) for name, kind in TYPES.items()), line
    assert all(isinstance(tag, str) for tag in analysis["tags"]), line
    assert line["meta"]["prompt_tokens"] > 0 and line["meta"]["completion_tokens"] > 0, line
for line in failures:
    assert line["failure"]["class"] in CLASSES, line
final = json.loads((out / "enriched_products_analysis.json").read_text())
assert [line["id"] for line in final] == [line["id"] for line in sorted(results, key=lambda line: line["seq"])]
summary = json.loads((out / "analysis_summary.json").read_text())
assert summary["counts"]["completed"] == len(results) and summary["counts"]["failed"] == len(failures)
print(f"{len(results)} analyses that the schema allows, {len(failures)} failures: {summary['failures_by_class']}")
assert len(results) > len(failures), "most products should have an analysis"
