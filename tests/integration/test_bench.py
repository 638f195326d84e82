"""Benchmarks in their smallest size: they run, and every row says something. Speeds are not judged here, losses are."""

import json
import math
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BENCH = str(ROOT / "scripts" / "bench")
pytestmark = pytest.mark.demo


def test_every_row_of_the_session_benchmark_has_its_numbers() -> None:
    done = subprocess.run(
        [BENCH, "session", "--smoke", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["name"] == "session"
    rows = result["rows"]
    for row in rows:
        assert row["what"] and row["unit"] and row["peer_name"]
        assert math.isfinite(row["ours"]) and row["ours"] > 0
        if "not measured" in row["peer_name"]:  # a peer that could not be installed says so
            assert row["peer"] is None and row["ratio"] is None
        else:
            assert row["peer"] > 0 and row["ratio"] > 0
    names = " | ".join(row["what"] for row in rows)
    for part in ("leaf alone", "intermediate", "without KEM", "resumption", "256 B", "1 KiB", "16 KiB", "loopback",
                 "idle session"):
        assert part in names
    assert next(row for row in rows if "without early data" in row["what"])["ours"] == 184


def test_every_row_of_the_engine_benchmark_has_its_numbers() -> None:
    done = subprocess.run(
        [BENCH, "engine", "--smoke", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 9 and all(math.isfinite(row["ours"]) and row["peer"] > 0 and row["unit"] for row in rows)


def test_every_row_of_the_policy_benchmark_has_its_numbers() -> None:
    done = subprocess.run(
        [BENCH, "policy", "--smoke", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 10 and all(math.isfinite(row["ours"]) and row["peer"] > 0 and row["peer_name"] for row in rows)
    by_text = [row for row in rows if row["peer_name"].endswith("as text")]
    assert len(by_text) == 2 and all(row["ratio"] > 1 for row in by_text), "parsing all of it costs more than anything"


def test_every_row_of_the_store_benchmark_has_its_numbers() -> None:
    done = subprocess.run(
        [BENCH, "store", "--smoke", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert all(row["what"] and math.isfinite(row["ours"]) and row["ours"] >= 0 for row in rows)
    found = {row["what"]: row for row in rows}
    for what, wanted in (
        ("by meaning, p50", 150), ("a search by meaning, CPU", 1 / 1.05), ("adding", 1 / 1.15),
        ("reading a passage", 1 / 1.1), ("recall", 1), ("unlock", 1), ("memory for 3,000", 1), ("ingest of text", 0.9),
    ):
        row = next(row for name, row in found.items() if what in name)
        assert row["wanted"] == pytest.approx(wanted) and row["peer_name"]
        if "not measured" not in row["peer_name"]:
            assert row["peer"] > 0 and row["ratio"] > 0
    assert next(row for name, row in found.items() if "recall" in name)["ours"] > 50


def test_every_row_of_the_identity_benchmark_has_its_numbers() -> None:
    done = subprocess.run(
        [BENCH, "identity", "--smoke", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 24 and all(math.isfinite(row["ours"]) and row["ours"] > 0 for row in rows)
    judged = [(row["what"], row["peer"]) for row in rows if row["wanted"] is not None]
    assert [bound for _, bound in judged] == [1.0, 1.0, 3.0, 3.0, 200.0], judged


def test_the_gateway_is_measured_beside_a_bare_proxy_and_by_session_in_streams_and_for_long() -> None:
    done = subprocess.run(
        [BENCH, "gateway", "--smoke", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    cost, session, *prompts, lost, late, behind, memory = json.loads(done.stdout)["rows"]
    assert cost["unit"] == session["unit"] == "us" and memory["unit"] == "MiB"
    assert all(row["ours"] > 0 and row["peer"] > 0 and row["peer_name"] for row in (cost, session, *prompts, memory))
    assert len(prompts) == 2
    assert (lost["ours"], lost["ratio"]) == (0, 1) and late["ours"] >= 0 and math.isfinite(behind["ours"])


@pytest.mark.parametrize("early_data", ["on", "off"])
def test_a_small_campaign_of_faults_loses_and_doubles_nothing(early_data: str) -> None:
    done = subprocess.run(
        [BENCH, "faults", "--runs", "120", "--seed", "7", "--early-data", early_data, "--json"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(done.stdout)
    assert result["runs"] == 120 == result["delivered"] + result["interrupted"]
    assert (result["lost"], result["failed"], result["accepted_per_id_max"]) == (0, 0, 1)
    assert result["identical"] == result["delivered"] > 100
    causes = {cause: result[f"interrupted_{cause}"] for cause in ("in_call", "answer_lost", "epoch", "without_a_kill")}
    assert sum(causes.values()) == result["interrupted"] and causes["without_a_kill"] == 0
    assert early_data == "on" or causes["epoch"] == 0


def test_traffic_analysis_learns_nothing_from_sizes_in_bucket_nor_at_all_in_constant() -> None:
    done = subprocess.run(
        [BENCH, "whisper", "--smoke", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads(done.stdout)["rows"]}
    hidden = ("topic from sizes, bucket", "length within a rung from sizes, bucket")  # the rung itself is published
    judged = [row for what, row in rows.items() if what in hidden or (row["unit"] == "AUC" and "constant" in what)]
    assert len(judged) == 10
    assert all(row["ours"] < 0.65 for row in judged), judged  # chance is 0.5; a smoke run has few answers
    assert any(row["peer"] > 0.9 for row in judged), "the attack itself no longer works"


def test_every_row_of_the_phone_benchmark_has_its_numbers() -> None:
    done = subprocess.run(
        [BENCH, "phone", "--smoke", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    *echoes, first = json.loads(done.stdout)["rows"]
    assert [echo["wanted"] for echo in echoes] == [0.7, None]
    assert all("back at once" in echo["what"] and echo["ours"] > 0 and echo["peer"] > 0 for echo in echoes)
    assert "first token" in first["what"] and first["ours"] > 0 and first["unit"] == "s"


def test_a_name_that_is_not_there_is_an_error_with_the_names_that_are() -> None:
    done = subprocess.run([BENCH, "nothing"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "session" in done.stderr and not done.stdout


def test_links_reach_what_the_radio_allows_and_lose_nothing() -> None:
    """In virtual time, so the numbers are the same on any machine, and may be judged."""
    done = subprocess.run(
        [BENCH, "links", "--smoke", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads(done.stdout)["rows"]}
    judged = [row for row in rows.values() if row["wanted"] is not None]
    assert len(judged) >= 12
    for row in judged:
        assert row["ratio"] >= row["wanted"], row
    day = [row for what, row in rows.items() if "walk-away" in what and "delivered" in what]
    assert day and all(row["unit"] == f"of {row['ours']}" for row in day)
