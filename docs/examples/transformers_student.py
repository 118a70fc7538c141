"""Train a student with the Hugging Face Trainer on the targets of `LELPProjector`."""

from torch.optim import AdamW
from transformers import Trainer, TrainingArguments

from lelp_sklearn import LELPProjector
from lelp_sklearn.losses import SubclassCrossEntropyLoss, class_logits
from task import make_net, print_accuracy


class Distiller(Trainer):
    criterion = SubclassCrossEntropyLoss(n_classes=2)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        progress = self.state.global_step / self.state.max_steps
        self.criterion.subclass_weight = max(0.0, 1 - 2 * progress)
        logits = model(inputs["X"])
        loss = self.criterion(logits, inputs["targets"])
        return (loss, {"logits": logits}) if return_outputs else loss


def train(task, seed=0, max_epochs=100, batch_size=128):
    projector = LELPProjector(head=task.head, temperature=1.0, random_state=0)
    targets = projector.fit_transform(task.embeddings, task.y)
    rows = [{"X": x, "targets": t} for x, t in zip(task.X, targets, strict=True)]
    net = make_net(task.X.shape[1], targets.shape[1], seed)
    adamw = AdamW(net.parameters(), lr=0.01, weight_decay=0.01)
    sizes = {"num_train_epochs": max_epochs, "per_device_train_batch_size": batch_size}
    schedule = {"lr_scheduler_type": "cosine", "max_grad_norm": 0, "seed": seed}
    rest = {"remove_unused_columns": False, "save_strategy": "no", "report_to": "none"}
    arguments = TrainingArguments(".", **sizes, **schedule, **rest)
    trainer = Distiller(net, arguments, train_dataset=rows, optimizers=(adamw, None))
    trainer.train()
    return class_logits(net.cpu().eval()(task.X_test), 2).softmax(1).detach()


if __name__ == "__main__":
    print_accuracy("Hugging Face Trainer", train)
