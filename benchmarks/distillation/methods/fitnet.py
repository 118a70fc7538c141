"""Feature distillation (FitNet, arXiv:1412.6550) for a student of a body and a head.

The library has no such method; this helper lets the benchmarks compare with it. Beside
vanilla distillation, a linear map from the output of the student's body regresses the
teacher's embedding; the weight of that regression falls linearly to zero over the first
half of the training, as the library's own subclass weight does.
"""

import math

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.distillation.methods.base import CONSTANT, Batch, Method, Term

# Rows of a prediction that are on the device at once.
ROWS_AT_ONCE = 4_096


def as_inputs(X, device):
    """Put rows on a device; half precision is for their storage only."""
    if issparse(X):
        X = X.toarray()
    # Copied, for torch warns of arrays that may not be written to, such as memory maps.
    inputs = torch.tensor(X, device=device)
    return inputs.float() if inputs.dtype == torch.float16 else inputs


def scaled_embeddings(embeddings):
    """Centre embeddings; let the mean variance of a column be one."""
    centred = embeddings - embeddings.mean(axis=0)
    return torch.as_tensor(centred / np.sqrt(np.mean(centred**2)))


class OneHiddenLayer(nn.Module):
    """A multilayer perceptron of one hidden layer."""

    def __init__(self, n_features, n_outputs, n_units=32):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_features, n_units), nn.ReLU())
        self.head = nn.Linear(n_units, n_outputs)

    def forward(self, X):
        return self.head(self.body(X))


class FitNetClassifier(ClassifierMixin, BaseEstimator):
    """A student that learns class logits and embeddings.

    `module`, called with the numbers of features and outputs and with `module_params`,
    has a `body` and upon it a linear `head`. Trained on `device`, it starts from the
    weights and takes the order of rows that it would have on the CPU.
    """

    def __init__(
        self,
        module=OneHiddenLayer,
        *,
        module_params=None,
        regression_weight=10.0,
        temperature=4.0,
        learning_rate=0.03,
        weight_decay=0.01,
        max_epochs=240,
        batch_size=100,
        device="cpu",
        random_state=0,
    ):
        self.module = module
        self.module_params = module_params
        self.regression_weight = regression_weight
        self.temperature = temperature
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def fit(self, X, y, *, teacher_embeddings, teacher_logits):
        """Train on the teacher's temperature-softened classes and its embeddings."""
        self.classes_ = np.unique(y)
        device = torch.device(self.device)
        logits = torch.as_tensor(teacher_logits)
        data = (
            as_inputs(X, device),
            torch.softmax(logits / self.temperature, dim=1).to(device),
            scaled_embeddings(teacher_embeddings).to(device),
        )
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.random_state)
            self.module_ = self.module(
                X.shape[1], len(self.classes_), **(self.module_params or {})
            )
            n_units = self.module_.head.in_features
            regressor = nn.Linear(n_units, teacher_embeddings.shape[1])
            self.module_.to(device)
            self._train(data, regressor.to(device))
        self.module_.eval()
        return self

    def _train(self, data, regressor):
        optimizer = torch.optim.AdamW(
            [*self.module_.parameters(), *regressor.parameters()],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            fused=True,
        )
        n_batches = -(-len(data[0]) // self.batch_size)
        for epoch in range(self.max_epochs):
            order = torch.randperm(len(data[0])).to(data[0].device)
            batches = order.split(self.batch_size)
            for step, rows in enumerate(batches):
                progress = (epoch + step / n_batches) / self.max_epochs
                optimizer.param_groups[0]["lr"] = (
                    self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
                )
                weight = self.regression_weight * max(0.0, 1 - 2 * progress)
                optimizer.zero_grad()
                self._loss([part[rows] for part in data], regressor, weight).backward()
                optimizer.step()

    def _loss(self, batch, regressor, weight):
        X, targets, embeddings = batch
        hidden = self.module_.body(X)
        logits = self.module_.head(hidden) / self.temperature
        loss = self.temperature**2 * cross_entropy(logits, targets)
        return loss + weight * mse_loss(regressor(hidden), embeddings)

    def predict(self, X):
        """Return the class of each row."""
        return self.classes_[self.class_logits(X).argmax(1)]

    @torch.no_grad()
    def class_logits(self, X):
        """Return the logits of each row, (n, C)."""
        check_is_fitted(self)
        device = self.module_.head.weight.device
        made = [
            self.module_(as_inputs(X[start : start + ROWS_AT_ONCE], device)).cpu()
            for start in range(0, X.shape[0], ROWS_AT_ONCE)
        ]
        return torch.cat(made).numpy()


def loss(batch: Batch, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of the embeddings that are regressed."""
    errors = batch.hidden @ weight.mT + bias - batch.embeddings
    return errors.square().mean((-2, -1))


# The embeddings are scaled to a mean variance of one, and the weight suits these.
TERM = Term(
    loss,
    own_weight=30.0,
    modules=lambda n_units, n_embedding: [nn.Linear(n_units, n_embedding)],
)
METHODS = {"FitNet": Method({"n_subclasses": 1}, is_fitnet=True)}
CONSTANT_WEIGHT = {
    "FitNet, constant": Method({"n_subclasses": 1}, CONSTANT, is_fitnet=True)
}
