"""The mathematics of the library in plain float64 NumPy, as slow as it is clear.

Every function follows its formula literally: whole matrices, full singular value
decompositions, one Python loop per class. Nothing here is shared with the package,
so that agreement between the two means something.

Shapes: ``n`` rows, ``d`` features, ``C`` classes, ``S`` subclasses, ``K = C * S``.
Labels are codes ``0 .. C - 1``; column ``c * S + s`` belongs to subclass s of class c.
"""

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax


def as_float64(*arrays):
    """Return each array as float64, leaving None as it is."""
    return tuple(None if a is None else np.asarray(a, dtype=np.float64) for a in arrays)


def unit_weights(sample_weight, n_rows):
    """Return the weights as float64, ones where none are given."""
    return np.ones(n_rows) if sample_weight is None else as_float64(sample_weight)[0]


# ---------------------------------------------------------------------- the head


def two_columns(values):
    """Turn a sigmoid head's single column (or row) l into the pair (-l/2, +l/2)."""
    values = as_float64(values)[0]
    return np.concatenate([-values / 2, values / 2], axis=-1)


def two_rows(coef, intercept):
    """Turn a sigmoid head of one row into the softmax head of two rows."""
    coef, intercept = as_float64(np.atleast_2d(coef), np.atleast_1d(intercept))
    if len(coef) > 1:
        return coef, intercept
    return two_columns(coef.T).T, two_columns(intercept)


def class_weights_and_means(X, codes, n_classes, sample_weight=None):
    """Return the weight of each class and its weighted mean."""
    X = as_float64(X)[0]
    weight = unit_weights(sample_weight, len(X))
    totals = np.array([weight[codes == c].sum() for c in range(n_classes)])
    means = [weight[codes == c] @ X[codes == c] for c in range(n_classes)]
    return totals, np.array(means) / totals[:, None]


def shrunk_correlation(rows, weight):
    """Covariance of rows about zero, its correlations shrunk (Chen et al., 2010).

    Towards the identity. Constant columns are left out.
    """
    n = weight.sum()
    covariance = (rows * weight[:, None]).T @ rows / n
    varies = np.ptp(rows[weight > 0], axis=0) > 0
    d = varies.sum()
    deviations = np.sqrt(np.diag(covariance)[varies])
    correlation = covariance[np.ix_(varies, varies)] / np.outer(deviations, deviations)
    mean_square = np.mean(correlation**2) if d else 0.0
    denominator = (n + 1) * (mean_square - 1 / max(d, 1))
    shrinkage = 1.0
    if denominator > 0:
        shrinkage = min((mean_square + 1) / denominator, 1.0)
    shrunk = (1 - shrinkage) * correlation + shrinkage * np.eye(d)
    covariance[np.ix_(varies, varies)] = shrunk * np.outer(deviations, deviations)
    return covariance


def discriminant_head(X, codes, n_classes, sample_weight=None):
    """Linear discriminant of the class means and the mean, shrunk class covariance.

    The class means are taken about the mean of all rows, a shift common to all classes
    that leaves the probabilities as they are and makes the row space independent of
    where the embeddings lie: its rank is C - 1. Constant columns take no part; others
    have at least 1e-4 of their variance within the classes.
    """
    X = as_float64(X)[0]
    weight = unit_weights(sample_weight, len(X))
    totals, means = class_weights_and_means(X, codes, n_classes, weight)
    priors = totals / totals.sum()
    residuals = X - means[codes]
    centre = weight @ X / weight.sum()
    varies = np.ptp(X[weight > 0], axis=0) > 0
    pooled = sum(
        priors[c]
        * shrunk_correlation(residuals[codes == c][:, varies], weight[codes == c])
        for c in range(n_classes)
    )
    least = 1e-4 * (weight @ (X - centre)[:, varies] ** 2) / weight.sum()
    pooled[np.diag_indices_from(pooled)] = np.maximum(np.diag(pooled), least)
    # In units without scale: the inverse of unlike scales is found no worse.
    unit = np.sqrt(np.diag(pooled))
    inverse = np.linalg.inv(pooled / np.outer(unit, unit)) / np.outer(unit, unit)
    coef = np.zeros_like(means)
    coef[:, varies] = (means - centre)[:, varies] @ inverse
    return coef, np.log(priors) - 0.5 * np.sum(coef * (means + centre), axis=1)


def least_squares_head(X, logits, sample_weight=None):
    """Weighted least squares of the logits on the rows, with intercept.

    Of the smallest coefficients for columns of unit variance.
    """
    X, logits = as_float64(X, logits)
    if logits.shape[1] == 1:
        logits = two_columns(logits)
    weight = unit_weights(sample_weight, len(X))
    mean_x = weight @ X / weight.sum()
    mean_logits = weight @ logits / weight.sum()
    root = np.sqrt(weight)[:, None]
    unit = np.sqrt(weight @ (X - mean_x) ** 2 / weight.sum())
    solution = np.linalg.lstsq(
        root * (X - mean_x) / unit, root * (logits - mean_logits), rcond=None
    )[0]
    solution /= unit[:, None]
    return solution.T, mean_logits - mean_x @ solution


# ---------------------------------------------------------------- the directions


def null_space_projector(coef, null_space=True):
    """N = I - W^+ W, or the identity where the null space is switched off.

    Singular values below 1e-6 of the largest count as zero: the rows of a trained
    softmax head may sum to zero, and then only up to rounding in single precision.
    """
    coef = as_float64(coef)[0]
    d = coef.shape[1]
    if not null_space:
        return np.eye(d)
    _, values, right = np.linalg.svd(coef, full_matrices=False)
    rows = right[values > 1e-6 * values.max(initial=0.0)]
    return np.eye(d) - rows.T @ rows


def null_space_rows(X, codes, coef, sample_weight=None, null_space=True):
    """N (h - mu_c) of every row, c being the row's own class."""
    X = as_float64(X)[0]
    n_classes = len(coef)
    _, means = class_weights_and_means(X, codes, n_classes, sample_weight)
    return (X - means[codes]) @ null_space_projector(coef, null_space)


def class_spectrum(X, codes, coef, sample_weight=None, null_space=True):
    """Return per class all principal variances, descending, and all axes.

    Returns
    -------
    variances : list of C arrays of shape (r,)
    axes : list of C arrays of shape (r, d)
    """
    rows = null_space_rows(X, codes, coef, sample_weight, null_space)
    weight = unit_weights(sample_weight, len(rows))
    variances, axes = [], []
    for c in range(len(coef)):
        members, w = rows[codes == c], weight[codes == c]
        scaled = members * np.sqrt(w / w.sum())[:, None]
        _, values, right = np.linalg.svd(scaled, full_matrices=False)
        variances.append(values**2)
        axes.append(right)
    return variances, axes


def principal_directions(X, codes, coef, n_subclasses, **options):
    """Return the top-S variances (C, S) and orthonormal directions (C, S, d)."""
    variances, axes = class_spectrum(X, codes, coef, **options)
    return (
        np.array([v[:n_subclasses] for v in variances]),
        np.array([a[:n_subclasses] for a in axes]),
    )


def rotate(directions, rotations):
    """U_c = Q_c V_c for rotations Q of shape (C, S, S)."""
    return np.einsum("cst,ctd->csd", *as_float64(rotations, directions))


def centred_offsets(directions, means):
    """o_cs = u_cs . mu_c, the offsets of every splitter but k-means."""
    return np.einsum("csd,cd->cs", *as_float64(directions, means))


def centroid_directions(centroids, means, projector):
    """Directions and offsets that make soft k-means a linear projection.

    With m = N (centroid - mu): u = m and o = m . mu + ||m||^2 / 2, because
    -||N(h - mu) - m||^2 / 2 and u . h - o differ by a term common to a class.
    """
    centroids, means = as_float64(centroids, means)
    moved = (centroids - means[:, None, :]) @ projector
    offsets = centred_offsets(moved, means) + 0.5 * np.sum(moved**2, axis=2)
    return moved, offsets


def direction_variances(X, codes, directions, sample_weight=None):
    """Weighted population variance of u_cs . h over the rows of class c: (C, S)."""
    X, directions = as_float64(X, directions)
    weight = unit_weights(sample_weight, len(X))
    variances = []
    for c, rows in enumerate(directions):
        w = weight[codes == c] / weight[codes == c].sum()
        values = X[codes == c] @ rows.T
        variances.append(w @ (values - w @ values) ** 2)
    return np.array(variances)


# --------------------------------------------------------------- the soft labels


def projections(X, directions, offsets):
    """z_cs = u_cs . h - o_cs: (n, C, S)."""
    X, directions, offsets = as_float64(X, directions, offsets)
    return np.einsum("nd,csd->ncs", X, directions) - offsets


def pooled_deviation(z, codes, sample_weight=None):
    """Root mean square of z over rows and subclasses, each row in its own class."""
    weight = unit_weights(sample_weight, len(z))
    own = z[np.arange(len(z)), codes]
    return np.sqrt(weight @ np.sum(own**2, axis=1) / (z.shape[2] * weight.sum()))


def class_probabilities(logits, temperature=1.0):
    """p_c = softmax(logits / tau); one column is a sigmoid teacher's."""
    logits = as_float64(logits)[0]
    if logits.shape[1] == 1:
        logits = two_columns(logits)
    return softmax(logits / temperature, axis=1)


def within_class_probabilities(z, subclass_temperature):
    """q_cs = softmax_s(z / beta); beta = 0 gives all to the first largest z."""
    if subclass_temperature == 0:
        return np.eye(z.shape[2])[np.argmax(z, axis=2)]
    return softmax(z / subclass_temperature, axis=2)


def soft_labels(
    X, directions, offsets, logits, *, temperature=1.0, subclass_temperature
):
    """p_cs = p_c q_cs: (n, C * S); the subclass temperature is the absolute beta."""
    q = within_class_probabilities(
        projections(X, directions, offsets), subclass_temperature
    )
    p = class_probabilities(logits, temperature)
    return (p[:, :, None] * q).reshape(len(q), -1)


# ------------------------------------------------------------- the student's loss


def class_logits(outputs, n_classes, temperature=1.0):
    """A_c = tau logsumexp_s(a_cs / tau): (n, C)."""
    a = as_float64(outputs)[0].reshape(len(outputs), n_classes, -1)
    return temperature * logsumexp(a / temperature, axis=2)


def within_class_student_probabilities(outputs, n_classes, temperature):
    """softmax_s(a_cs / tau_w): (n, C, S)."""
    a = as_float64(outputs)[0].reshape(len(outputs), n_classes, -1)
    return softmax(a / temperature, axis=2)


def joint_cross_entropy(outputs, targets, temperature=1.0):
    """Per row: tau^2 CE(p_cs, softmax(a / tau)) over all K outputs."""
    outputs, targets = as_float64(outputs, targets)
    log_probabilities = log_softmax(outputs / temperature, axis=1)
    return -(temperature**2) * np.sum(targets * log_probabilities, axis=1)


def split_cross_entropy(
    outputs,
    targets,
    n_classes,
    *,
    temperature=1.0,
    subclass_weight=1.0,
    within_class_temperature=None,
):
    """Per row: tau^2 CE_class(tau) + lambda tau_w^2 sum_c p_c CE_within,c(tau_w).

    A within-class temperature of None is the coupled form, tau_w = tau.
    """
    outputs, targets = as_float64(outputs, targets)
    tau = temperature
    tau_w = tau if within_class_temperature is None else within_class_temperature
    a = outputs.reshape(len(outputs), n_classes, -1)
    p = targets.reshape(a.shape)
    log_class = log_softmax(class_logits(outputs, n_classes, tau) / tau, axis=1)
    across = -np.sum(p.sum(axis=2) * log_class, axis=1)
    within = -np.sum(p * log_softmax(a / tau_w, axis=2), axis=(1, 2))
    return tau**2 * across + subclass_weight * tau_w**2 * within


def label_cross_entropy(outputs, codes, n_classes, temperature=1.0):
    """Per row: CE(y, softmax(A)); zero where the code is negative (unlabelled)."""
    log_class = log_softmax(class_logits(outputs, n_classes, temperature), axis=1)
    losses = -log_class[np.arange(len(codes)), codes]
    return np.where(np.asarray(codes) < 0, 0.0, losses)


def student_loss(
    outputs,
    targets,
    codes,
    n_classes,
    *,
    temperature=1.0,
    subclass_weight=1.0,
    within_class_temperature=None,
    label_weight=0.0,
    sample_weight=None,
):
    """Batch loss: weighted mean of (1 - alpha) distillation + alpha label terms."""
    distillation = split_cross_entropy(
        outputs,
        targets,
        n_classes,
        temperature=temperature,
        subclass_weight=subclass_weight,
        within_class_temperature=within_class_temperature,
    )
    losses = (1 - label_weight) * distillation
    if label_weight > 0:
        label = label_cross_entropy(outputs, codes, n_classes, temperature)
        losses = losses + label_weight * label
    weight = unit_weights(sample_weight, len(losses))
    return weight @ losses / weight.sum()
