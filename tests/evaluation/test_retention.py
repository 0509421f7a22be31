"""What a stream keeps of Base, on a table made by hand."""

import pytest

from lpm_jax.evaluation import goals, report

BASE = {
  "heldout": {"lip_correlation": 0.8, "pose_error": 0.1, "nod_f1": 0.0, "flicker": 0.5},
  "identity_with": {"all": {"accuracy": 0.9}},
}
ONLINE = {
  "heldout": {"lip_correlation": 0.6, "pose_error": 0.2, "nod_f1": 0.5, "flicker": 0.0},
  "identity_with": {"all": {"accuracy": 0.99}},
}


@pytest.fixture
def rows() -> dict[str, dict]:
  found = goals.retention({"render": BASE, "model": BASE, "dmd": ONLINE, "still": ONLINE})
  return {row["name"]: row for row in found}


def test_more_is_better_or_less_is(rows):
  assert rows["lip correlation"]["kept"] == {"dmd": pytest.approx(0.75)}
  assert rows["pose error"]["kept"] == {"dmd": pytest.approx(0.5)}
  assert rows["hidden attributes with references"]["kept"] == {"dmd": pytest.approx(1.1)}
  assert rows["lip correlation"]["lines"] == {"dmd": "dmd keeps 75 % of Base"}


def test_what_cannot_be_divided_is_not_available(rows):
  for name in ("nod F1", "flicker", "seam index", "held-out style, idle actions"):
    assert rows[name]["kept"] == {"dmd": None}, name
    assert rows[name]["lines"] == {"dmd": "dmd keeps n/a of Base"}


def test_a_wrong_sign_keeps_nothing():
  assert goals.kept_share(-0.2, 0.8) == 0.0
  assert goals.kept_share(0.2, -0.8) is None and goals.kept_share(None, 0.8) is None


def test_both_have_to_be_in_the_run():
  assert goals.retention({"model": BASE, "still": ONLINE}) == []
  assert goals.retention({"render": BASE, "dmd": ONLINE}) == []


def test_the_table_shows_share_and_values(rows):
  table = report.retention_table(list(rows.values()))
  assert table["head"] == ["", "dmd keeps", "of Base"]
  cells = {row[0]: row[1:] for row in table["rows"]}
  assert cells["lip correlation"] == ["75% (0.60)", "0.80"]
  assert cells["nod F1"] == ["n/a (0.50)", "0.00"] and cells["seam index"] == ["n/a (–)", "–"]
