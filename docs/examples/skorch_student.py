"""Train a student with skorch on the targets of `LELPProjector`."""

from skorch import NeuralNetClassifier
from skorch.callbacks import LRScheduler
from torch import optim

from lelp_sklearn import LELPProjector
from lelp_sklearn.losses import SubclassCrossEntropyLoss, class_logits
from task import make_net, print_accuracy


class CosineWithAnnealing(LRScheduler):
    def on_batch_begin(self, net, **kwargs):
        progress = self.lr_scheduler_.last_epoch / self.lr_scheduler_.T_max
        net.criterion_.subclass_weight = max(0.0, 1 - 2 * progress)


def train(task, seed=0, max_epochs=100, batch_size=128):
    projector = LELPProjector(head=task.head, temperature=1.0, random_state=0)
    targets = projector.fit_transform(task.embeddings, task.y)
    n_steps = max_epochs * -(-len(targets) // batch_size)
    schedule = {"policy": "CosineAnnealingLR", "step_every": "batch", "T_max": n_steps}
    adamw = {"optimizer": optim.AdamW, "optimizer__weight_decay": 0.01, "lr": 0.01}
    rest = {"iterator_train__shuffle": True, "train_split": None, "verbose": 0}
    net = NeuralNetClassifier(
        lambda: make_net(task.X.shape[1], targets.shape[1], seed),
        classes=[0, 1],
        criterion=SubclassCrossEntropyLoss(n_classes=2),
        predict_nonlinearity=lambda logits: class_logits(logits, 2).softmax(1),
        callbacks=[CosineWithAnnealing(**schedule)],
        max_epochs=max_epochs,
        batch_size=batch_size,
        **adamw,
        **rest,
    )
    return net.fit(task.X, targets).predict_proba(task.X_test)


if __name__ == "__main__":
    print_accuracy("skorch", train)
