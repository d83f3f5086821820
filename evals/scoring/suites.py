"""Suites: names that stand for several tasks."""

# The paper's four benchmarks, zero-shot: its table states no shots, so this is our choice (and
# lm-eval's own default for each). The headline metric is accuracy by the whole answer's
# log-likelihood, for all four alike: then a score, its prediction histogram and its majority rate
# speak of the same picks. ARC-Challenge and OpenBookQA also record acc_norm (per character).
PAPER_SHOTS = {"mmlu": 0, "arc_challenge": 0, "boolq": 0, "openbookqa": 0}

SUITES: dict[str, list[str]] = {
    "facts": ["facts_choice", "facts_answer"],
    "skills": ["skills_answer"],
    "paper": list(PAPER_SHOTS),
}
