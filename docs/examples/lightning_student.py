"""Train a student with Lightning on the targets of `LELPProjector`."""

from lightning import LightningModule, Trainer
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from lelp_sklearn import LELPProjector
from lelp_sklearn.losses import SubclassCrossEntropyLoss, class_logits
from task import make_net, print_accuracy


class Student(LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net, self.criterion = net, SubclassCrossEntropyLoss(n_classes=2)

    def training_step(self, batch):
        progress = self.global_step / self.trainer.estimated_stepping_batches
        self.criterion.subclass_weight = max(0.0, 1 - 2 * progress)
        return self.criterion(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        adamw = AdamW(self.parameters(), lr=0.01, weight_decay=0.01)
        cosine = CosineAnnealingLR(adamw, self.trainer.estimated_stepping_batches)
        return [adamw], [{"scheduler": cosine, "interval": "step"}]


def train(task, seed=0, max_epochs=100, batch_size=128):
    projector = LELPProjector(head=task.head, temperature=1.0, random_state=0)
    targets = projector.fit_transform(task.embeddings, task.y)
    rows = TensorDataset(task.X, targets)
    student = Student(make_net(task.X.shape[1], targets.shape[1], seed))
    trainer = Trainer(max_epochs=max_epochs, logger=False, enable_checkpointing=False)
    trainer.fit(student, DataLoader(rows, batch_size, shuffle=True))
    return class_logits(student.eval().net(task.X_test), 2).softmax(1).detach()


if __name__ == "__main__":
    print_accuracy("Lightning", train)
