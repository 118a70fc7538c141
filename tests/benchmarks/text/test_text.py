"""The benchmark on text: what it reads, and what it says where data is missing."""

import numpy as np
import pytest
import torch

from benchmarks.text import data, routing, run, students

TEXTS = ["a dull film", "a very good film", "good film , a film"]


def test_without_its_data_it_is_skipped_with_a_line(tmp_path, capsys):
    run.main(["--data-dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("Skipped: there is no") for line in lines)


def test_the_desks_are_two_and_every_intent_has_one():
    names = ["card_arrival", "exchange_rate", "change_pin", "top_up_failed"]
    found = routing.desks(names)
    assert found["cards or not"].tolist() == [1, 0, 1, 0]
    assert np.bincount(found["arbitrary halves"]).tolist() == [2, 2]


def test_no_part_of_a_validation_sentence_is_trained_on(tmp_path):
    sentences = [f"the film number {n} is good" for n in range(1_200)]
    folder = tmp_path / "sst2"
    folder.mkdir()
    phrases = [" ".join(text.split()[2:]) for text in sentences]
    for part, texts in (("sentences_train", sentences), ("train", phrases)):
        lines = ["text\tlabel", *(f"{text}\t1" for text in texts)]
        data.pd.DataFrame([line.split("\t") for line in lines]).to_csv(
            folder / f"{part}.tsv.gz", sep="\t", header=False, index=False
        )
    train, validation = data.split_sentiment(tmp_path)
    assert len(validation) == data.N_VALIDATION
    assert len(train) == 200
    assert not any(part in text for part in train.texts for text in validation.texts)


@pytest.mark.parametrize("name", ["bag of n-grams", "convolution"])
def test_students_take_the_ids_and_padding_changes_nothing(name):
    short = students.READERS[name](8).fit(TEXTS)
    long = students.READERS[name](12).fit(TEXTS)
    torch.manual_seed(0)
    module = short.student(short.length, 6, **short.module_params).eval()
    outputs = module(torch.as_tensor(short.transform(TEXTS)))
    assert outputs.shape == (3, 6)
    padded = module(torch.as_tensor(long.transform(TEXTS)))
    torch.testing.assert_close(padded, outputs)


def test_words_that_come_once_are_unknown():
    words = students.WordIds(4).fit(TEXTS)
    ids = words.transform(["film good dull unheard"])[0]
    # Padding is 0, unknown words are 1.
    assert ids[2] == ids[3] == 1
    assert len({*ids[:2].tolist(), 0, 1}) == 4
