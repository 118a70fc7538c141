"""The benchmark with few labels: what it reads, and hides."""

from argparse import Namespace

import torch

from benchmarks.distillation import semi_supervised


def test_a_task_without_data_is_skipped_with_a_line(tmp_path, capsys):
    assert semi_supervised.names_of_tasks(None) == [semi_supervised.PRIME]
    assert semi_supervised.names_of_tasks(tmp_path) == [semi_supervised.PRIME]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("Skipped: ") for line in lines)


def test_one_row_in_a_hundred_keeps_its_label():
    options = Namespace(quick=True, data_dir=None)
    data_of = {
        teacher: semi_supervised.make_data(
            semi_supervised.PRIME, teacher, 0, "validation", options
        )
        for teacher in semi_supervised.TEACHERS
    }
    for data in data_of.values():
        assert (data.y != -1).sum() == len(data.X) // 100
        assert (data.y[: len(data.X) // 100] != -1).all()
    heads = [data.head.weight for data in data_of.values()]
    assert not torch.equal(*heads)
    # Rows without a label take part: the student is another one for them.
    setting = {"learning_rate": 0.03, "temperature": 4.0}
    data = data_of["all labels"]
    found = [
        semi_supervised.score(data, (semi_supervised.BASELINE, n), setting, 40)
        for n in (0, 4)
    ]
    assert found[0] != found[1]
