"""The digits and their judges."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sklearn")

from vantage.core import UserError
from vantage.tasks.generative.digits import Digits, classifier, data
from vantage.tasks.generative.task import task_from_spec


def test_the_classifiers_know_digits_that_they_have_not_seen_and_are_always_the_same() -> None:
    images, labels = data()
    assert images.shape == (1797, 64)
    assert (float(images.min()), float(images.max())) == (-1.0, 1.0)
    for half in (0, 1):
        right = classifier(half)(images[1 - half :: 2]).argmax(-1) == labels[1 - half :: 2]
        assert float(right.float().mean()) > 0.94
    again = classifier.__wrapped__(0)
    for one, other in zip(again.parameters(), classifier(0).parameters(), strict=True):
        assert torch.equal(one, other)


def test_labels_are_drawn_wrongly_as_often_as_asked() -> None:
    images, labels = data()
    x, label = Digits(mislabelled=0.5).draw(4000, torch.Generator().manual_seed(0))
    true = labels[torch.cdist(x, images).argmin(1)]
    assert float((true != label).float().mean()) == pytest.approx(0.45, abs=0.03)
    x, label = Digits(mislabelled=0.0).draw(100, torch.Generator().manual_seed(0))
    assert torch.equal(labels[torch.cdist(x, images).argmin(1)], label)


def test_real_digits_score_high_and_lie_in_the_data() -> None:
    images, labels = data()
    task = Digits()
    assert float(task.rewards(images, labels)["class"].mean()) > 0.95
    assert float(task.rewards(images, (labels + 1) % 10)["class"].mean()) < 0.05
    judged = task.measure(images, labels)
    assert judged["gold"] > 0.95
    assert judged["distance"] == pytest.approx(0, abs=1e-2)
    assert float(Digits("ink").rewards(torch.ones(1, 64), None)["ink"]) == 1.0
    with pytest.raises(UserError, match="did you mean class"):
        task_from_spec("digits:clas")


def test_a_prompt_is_the_digit_that_is_asked_for() -> None:
    task = task_from_spec("digits", {"hidden": [16], "evaluation_steps": 2})
    assert task.size == 10
    assert task.prompts(torch.tensor([3, 7])).items == [3, 7]
    judged = task.evaluate(task.make_policy(), samples=20, seed=0)
    assert set(judged) == {"score", "class", "gold", "distance"}
