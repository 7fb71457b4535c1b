"""docs/PUBLISHED_STUDY.md: every table is what the published tables give, and every number in its
text is in one of them.

The published tables are not part of this project. They are looked for beside it and where
ROLECIRCUITS_PUBLISHED points (a clone of the public repository, or copies), and these tests are
skipped without them.
"""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import PROJECT
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.parser import run_script
from rolecircuits.stats.original_study import pooled_length_null

sys.path.append(str(PROJECT / "benchmarks"))

import published_study  # noqa: E402

PAGE = PROJECT / "docs" / "PUBLISHED_STUDY.md"
BESIDE = Path(__file__).resolve().parents[2] / "shared/published"
PUBLISHED = Path(os.environ.get("ROLECIRCUITS_PUBLISHED", BESIDE))
WITH_TABLES = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the published tables are not here (ROLECIRCUITS_PUBLISHED)"
)
NUMBER = re.compile(r"(?<![\w/.])[+-]?\d+\.\d+%?")
# in the text, and not in a table: marks of the study's code, chance, a threshold of its summary
FROM_CODE = {"0.58", "0.50", "0.5", "-0.01"}


@pytest.fixture(scope="module")
def computed():
    return published_study.build_tables(PUBLISHED, published_study.read_facts())


def split_page():
    """(text, tables) of the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return "\n".join(line for line in lines if not line.startswith("|")), "\n".join(rows)


@WITH_TABLES
@pytest.mark.parametrize("name", published_study.BUILDERS)
def test_every_table_is_what_the_published_tables_give(computed, name):
    page = PAGE.read_text(encoding="utf-8")
    assert computed[name] in page, f"python benchmarks/published_study.py: {name} has changed"


@WITH_TABLES
def test_every_number_of_the_text_is_in_a_computed_table(computed):
    text, rows = split_page()
    known = set(NUMBER.findall("\n".join(computed.values())))
    known |= {number.lstrip("+") for number in known} | FROM_CODE
    excess = [
        numbers[f"rsi_mean_{side}"].mean() - 0.084
        for name, side in (("llama", "base"), ("llama", "instruct"), ("mistral", "base"))
        for numbers in [published_study.read_numbers(PUBLISHED, f"{name}.csv")]
    ]
    known |= {f"{min(excess):.2f}", f"{max(excess):.2f}"}
    others = [line for line in rows.splitlines() if line not in "\n".join(computed.values())]
    claims = NUMBER.findall(text) + NUMBER.findall("\n".join(others))
    assert len(claims) > 40
    assert not [number for number in claims if number not in known]


@WITH_TABLES
def test_the_numbers_that_the_page_turns_on():
    """Computed here in another way, from the tables alone."""
    numbers = {n: published_study.read_numbers(PUBLISHED, f"{n}.csv") for n in ("llama", "mistral")}
    left, right = (numbers[name]["rfc_diff"] for name in ("llama", "mistral"))
    assert np.corrcoef(left, right)[0, 1] == pytest.approx(0.398, abs=5e-4)
    assert np.corrcoef(np.diff(left), np.diff(right))[0, 1] == pytest.approx(0.007, abs=5e-4)
    shifts = [abs(np.corrcoef(left, np.roll(right, k))[0, 1]) for k in range(32)]
    assert np.mean(np.array(shifts) >= shifts[0] - 1e-12) == 0.5
    qwen = published_study.read_numbers(PUBLISHED, "qwen.csv")
    assert qwen["rfc_diff"][0] == pytest.approx(4.06, abs=5e-3)
    assert qwen["rfc_diff"][1:].mean() == pytest.approx(-0.0028, abs=5e-5)
    assert not ((qwen["rfc_diff_ci_low"] > 0) | (qwen["rfc_diff_ci_high"] < 0)).any()


@WITH_TABLES
def test_the_counts_in_the_text(computed):
    """Counts stand in the text as words and integers, which the test above does not see."""
    changes = published_study.read_changes(PUBLISHED)

    def own(name):
        low, high = (changes[name][f"rfc_diff_ci_{end}"] for end in ("low", "high"))
        return (high < 0).sum(), len(low), (low > 0).sum()

    falls, layers, rises = own("mistral")
    assert (falls, layers, rises) == (19, 32, 1) and own("llama")[:2] == (2, 32)
    assert own("qwen") == (0, 28, 0) == own("qwen_earlier")
    facts = published_study.read_facts()["substring"]
    agree = sum(facts["self_referent"]) + 30 - sum(facts["neutral"])
    rows = published_study.read_csv(PUBLISHED, "table1_cross_model_comparison.csv")
    middle = [row for row in rows if row["token_position"] == "mid"]
    passing = [f"{r['model']} {r['version']}" for r in middle if r["passes_threshold"] == "True"]
    assert len(passing) == 5 and "Qwen Instruct" not in passing
    heads = published_study.read_csv(PUBLISHED, "patching_candidates_llama.csv")
    assert sum(round(float(row["self_base_median"]), 2) <= 0.03 for row in heads) == 4
    heads = published_study.read_csv(PUBLISHED, "patching_candidates_mistral.csv")
    growth = [float(r["self_instruct_median"]) / float(r["self_base_median"]) for r in heads]
    assert 2 < min(growth) and max(growth) < 6
    assert all(float(r["neutral_instruct_median"]) > float(r["neutral_base_median"]) for r in heads)
    text = " ".join(split_page()[0].split())
    for said in (
        f"{falls} of {layers} layers by their own",
        "2 of 32 layers by their own",
        "0 of 28 layers change",
        f"agree in {agree} of 60 prompts",
        "five of six models pass the study's mark, all but Qwen instruct",
        "in Mistral 6 of 10 pass a sign test",
        "four of Llama's ten have an entropy that rounds to 0.03",
        "two to six times as large",
        "In Mistral instruct 32 layers lie above 0, and 5 above the null",
        "in 15 layers it is *below* what length gives, in 3 above",
    ):
        assert said in text, said
    assert "| Mistral | 10 | 9 | 6 | 0 |" in computed["candidates counted"]
    assert "| +0.033 | 5 | 3, 15 | +0.109 | +0.096 | +0.084 | 32 | 5, 1 |" in computed["levels"]


@WITH_TABLES
def test_every_candidate_follows_the_formulas_that_the_page_gives():
    """The rank is by the sum of three z-scores."""
    for name in ("llama", "mistral"):
        found = published_study.read_csv(PUBLISHED, f"patching_candidates_{name}.csv")
        parts = [
            [float(row[f"{part}_score"]) for part in ("magnitude", "consistency", "baseline")]
            for row in found
        ]
        total = [float(row["composite_score"]) for row in found]
        np.testing.assert_allclose(np.sum(parts, axis=1), total, rtol=1e-5)
        assert total == sorted(total, reverse=True)
        assert [int(row["rank"]) for row in found] == list(range(1, 11))


def test_the_length_null_by_hand():
    """Rows that see 1, 2, 3 keys have entropies 0, ln 2, ln 3, pooled over prompts."""
    null = pooled_length_null({"self_referent": [1, 2], "neutral": [3], "confounder": [3, 3]})
    mean_self, mean_other = np.log(2) / 3, np.log(6) / 3
    assert null["rfc"] == pytest.approx(1 - mean_self / mean_other)
    assert null["rsi"] == pytest.approx((mean_other - mean_self) / mean_other)


def test_length_nulls_of_the_recorded_prompts():
    """What the page's second table rests on; needs no published table."""
    found = published_study.lengths(None, published_study.read_facts())
    assert found in PAGE.read_text(encoding="utf-8")
    assert "| Mistral | yes | 5.80 | 6.07 | 6.57 | +0.033 | +0.084 |" in found


@pytest.mark.parametrize(
    ("text", "letters", "word"),
    [
        ("How does the internet work?", True, False),
        ("What is DNA?", False, False),
        ("How tall am I?", False, True),
        ("Where was I born?", True, True),
        ("Describe yourself.", True, True),
        ("What is photosynthesis?", True, False),
    ],
)
def test_what_the_erased_labels_find(text, letters, word):
    assert published_study.has_letters(text) == letters
    assert published_study.has_word(text) == word


def test_prompts_are_parsed_and_not_run(tmp_path):
    file = tmp_path / "prompts.py"
    file.write_text("raise SystemExit\nNEUTRAL_PROMPTS = ['a b', 'c']\nOTHER = 1\n")
    prompts = published_study.read_prompts(file)
    assert prompts == {"neutral": ["a b", "c"]}
    word = type("Vocabulary", (), {"encode": staticmethod(str.split)})
    facts = published_study.count_facts(prompts, {"qwen": word})
    assert facts["tokens"] == {"qwen": {"neutral": [2, 1]}} and facts["words"] == {
        "neutral": [0, 0]
    }


def test_a_folder_without_the_tables_says_which_is_missing(tmp_path):
    with pytest.raises(UserError, match="neither .*_results.json nor .* is in it"):
        published_study.build_tables(tmp_path, published_study.read_facts())
    run = (published_study.parse_args, published_study.run, [str(tmp_path)])
    assert run_script(*run) == 2
