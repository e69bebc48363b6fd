"""benchmarks/student.py: the student as a detector, and the vote of several, on known answers."""

from __future__ import annotations

import importlib

import numpy as np
import pandas as pd
import pytest

from places import ROOT


@pytest.fixture
def student(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("student")


def frame(**changed):
    """Ten images clean and under fog, two seeds; the teacher errs on the first four under fog."""
    parts = []
    for seed in (0, 1):
        for corruption, severity in (("clean", 0), ("fog", 5)):
            index = np.random.default_rng(seed).permutation(10)
            wrong = (index < 4) & (severity > 0)
            parts.append(pd.DataFrame({
                "corruption": corruption, "severity": severity, "seed": seed, "index": index,
                "label": index, "teacher_prediction": index + wrong, "prediction": index,
                "confidence": 0.5, "cosine": 0.9 - 0.1 * wrong,
                "teacher_confidence": index / 10 + (severity == 0),
                "teacher_entropy": 10.0 - index - 10 * (severity == 0)}))
    return pd.concat(parts, ignore_index=True).assign(**changed)


def cells(lines):
    """The entries of a Markdown table, by the first of each line."""
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_what_tells_wrong_answers_and_corrupted_images(student):
    found = cells(student.detector_lines(frame()))
    assert found["student disagrees"][0].startswith("1.000")  # it is right where the teacher errs
    assert found["final cosine"][0].startswith("1.000")
    assert found["teacher's confidence"][0].startswith("1.000")
    assert found["student's confidence"][0].startswith("0.500")
    assert found["student's confidence"][1].startswith("-0.500")
    assert found["student disagrees"][2].startswith("0.700")  # 4 of 10 against none
    assert found["teacher's confidence"][2].startswith("1.000")
    assert found["share of students that disagree"][0].startswith("1.000")


def test_without_clean_images_there_is_one_task(student):
    images = frame()
    assert len(cells(student.detector_lines(images[images.severity > 0]))["final cosine"]) == 2


def test_the_vote(student):
    prediction = np.array([[1, 2, 2], [0, 1, 2], [3, 3, 3]])
    confidence = np.array([[1.0, 0.1, 0.1], [0.3, 0.5, 0.4], [0.2, 0.2, 0.2]])
    assert student.vote(prediction, confidence).tolist() == [2, 1, 3]


def test_an_ensemble_beside_one_student(student):
    images = frame()
    wrong = (images.seed == 1) & (images.severity > 0)
    images["prediction"] += wrong  # the second student is always wrong under fog, and less sure
    images["confidence"] -= 0.1 * wrong
    found = cells(student.ensemble_lines(images, seconds=0.01))
    assert found["teacher"][0] == "40.0"
    assert found["one student (mean of all)"][0] == "50.0"
    assert found["vote of 2 students"][0] == "0.0"
    assert found["vote of 2 students"][2].startswith("-40.00")
    assert found["vote of 2 students"][3].startswith("-50.00")
    assert found["vote of 2 students"][4] == "20.0"
