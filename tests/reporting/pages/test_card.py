from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import pytest
from helpers.browsing import HOSTILE

from kdsearch.errors import StorageError
from kdsearch.reporting.dashboard.artifacts import Shelf, curve, folder
from kdsearch.reporting.pages.one_trial import UNCONFIRMED, card

URL = "postgresql://ann:secret@db/kd"


def test_a_card_says_what_the_student_is_and_how_to_train_it_again(data):
    text = card(data, 3)
    assert text.startswith("# Trial 3 of study mnist\n\n100 times as fast as the teacher, 0.1 points below its 97.0 %")
    assert UNCONFIRMED in text
    assert "kdsearch train --trial 3 --name mnist --storage 'postgresql://ann:***@db/kd'" in text
    assert "secret" not in text
    for said in ("- width: 300", "- weights: 238,510", "- test accuracy: 97.00 %", "- torch: 2.15.0"):
        assert said in text


def test_a_confirmed_students_card_says_so_without_python_in_it(complete, gather):
    data = gather(complete)
    text = card(data, 3)
    assert UNCONFIRMED not in text
    assert "**Confirmed.** trained again with other seeds on the whole training set: 3 times; " in text
    assert "mean test accuracy: 96.40 % (95.41 to 97.39); mean ratio: 92.0 (87.1 to 97.1)" in text
    assert "whole training set: once; mean test accuracy: 97.50 %; mean ratio: 21.0" in card(data, 4)
    assert "{" not in text
    assert UNCONFIRMED in card(data, 0)


@pytest.mark.parametrize("number", [6, 99])
def test_no_card_of_what_was_never_trained(data, number):
    with pytest.raises(StorageError, match=f"trial {number}"):
        card(data, number)


def test_a_hostile_name_is_text_in_the_card_and_in_the_curve(make_trial, gather):
    data = gather([make_trial([0.9, 0.95], 10.0)], name=HOSTILE)
    assert "<" not in card(data, 0).split("\n## ")[0].replace("\\<", "")
    root = ElementTree.fromstring(curve(data, 0))
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
        "svg", "rect", "line", "text", "polyline", "circle",
    }  # fmt: skip
    assert len([element for element in root.iter() if element.tag.endswith("circle")]) == 2


def test_artifacts_lie_beside_a_file_and_for_a_server_under_a_name_without_its_password(tmp_path):
    assert str(folder("sqlite:///a/x.db")) == "a/x.db.artifacts"
    assert str(folder("journal:a/x.log")) == "a/x.log.artifacts"
    assert folder(URL) == folder(URL.replace("secret", "other"))
    assert folder(URL, tmp_path) == tmp_path


def test_the_shelf_holds_the_front_and_is_brought_up_to_date(typical, tmp_path):
    shelf = Shelf(URL, tmp_path / "a")

    def names() -> list[str]:
        import optuna.artifacts

        found = optuna.artifacts.get_all_artifact_meta(typical)
        for meta in found:
            with shelf.store.open_reader(meta.artifact_id) as file:
                assert file.read()
        return sorted(meta.filename for meta in found)

    expected = [f"trial-{i}-{kind}" for i in (0, 3, 4) for kind in ("card.md", "curve.svg")]
    shelf.fill(typical)
    assert names() == expected
    shelf.fill(typical)
    assert names() == expected
    shelf = Shelf(URL, tmp_path / "another machine")
    shelf.fill(typical)
    assert names() == expected


def test_what_left_the_front_leaves_the_shelf(typical, make_trial, tmp_path):
    shelf = Shelf(URL, tmp_path)
    shelf.fill(typical)
    typical.add_trial(make_trial([0.99], 400.0))
    shelf.fill(typical)
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) == 2


@pytest.mark.slow
def test_the_card_needs_no_torch():
    modules = "kdsearch.reporting.pages.one_trial, kdsearch.reporting.dashboard.note"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
