"""What the logged figures of a training are called on a page, in which unit they are, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """``label`` with ``unit`` (empty: none) of a figure, what the logged number is multiplied by, and a sentence."""

    label: str
    says: str
    unit: str = ""
    scale: float = 1.0

    @property
    def axis(self) -> str:
        """The label of an axis."""
        return f"{self.label} ({self.unit or 'no unit'})"


_GB = 1e-9
_KNOWN = {
    "loss": Measure("Training loss", "Mean over ranks and the steps since the last value. It should fall."),
    "lr": Measure("Learning rate", "Of the last step, as the schedule gave it."),
    "utterances_per_s": Measure(
        "Throughput",
        "Of all ranks. It should be flat: in a dip, training waited for data, for other ranks or for clustering.",
        "utterances/s",
    ),
    "data_wait": Measure(
        "Waiting for data", "Share of the time that steps waited for their batch. It should be near 0.", "%", 100
    ),
    "memory_wait": Measure(
        "Waiting for the memory", "Share of the time that steps waited for its answers. It should be near 0.",
        "%", 100,
    ),
    "coverage": Measure(
        "Coverage", "Share of anchors for which the memory found a positive; the others use their own.", "%", 100
    ),
    "speaker_accuracy": Measure("Same speaker", "Share of sampled positives of the anchor's speaker.", "%", 100),
    "recording_accuracy": Measure(
        "Same recording", "Share of sampled positives that are of the anchor's own recording.", "%", 100
    ),
    "useful_rate": Measure(
        "Same speaker, other recording", "Share of sampled positives that can teach: same speaker, other recording.",
        "%", 100,
    ),
    "nmi_speaker": Measure(
        "NMI with speakers", "Normalised mutual information of clusters and speakers: 1 means that they are the same."
    ),
    "nmi_recording": Measure(
        "NMI with recordings", "Normalised mutual information of clusters and recordings; lower than that of speakers."
    ),
    "cluster_smallest": Measure("Smallest cluster", "Utterances in the smallest cluster.", "utterances"),
    "cluster_median": Measure("Median cluster", "Utterances in the cluster of median size.", "utterances"),
    "cluster_largest": Measure("Largest cluster", "Utterances in the largest cluster.", "utterances"),
    "empty_clusters": Measure("Empty clusters", "Share of clusters without an utterance.", "%", 100),
    "stability": Measure(
        "Stability of clusters", "NMI of this clustering and the one before: 1 means that they are the same."
    ),
    "effective_rank": Measure(
        "Effective rank", "How many dimensions the embeddings fill (RankMe). A fall to 1 means a collapse."
    ),
    "eer": Measure("EER", "Equal error rate of the trials, on the ROC convex hull. Lower is better.", "%", 100),
    "eer_nearest": Measure("EER (nearest)", "The larger of FPR and FNR where they are nearest.", "%", 100),
    "min_dcf_001": Measure("minDCF, p = 0.01", "Normalised minimum detection cost. Lower is better; 1 is useless."),
    "min_dcf_005": Measure("minDCF, p = 0.05", "Normalised minimum detection cost. Lower is better; 1 is useless."),
    "balanced_accuracy": Measure("Balanced accuracy", "Mean recall of the classes. Higher is better.", "%", 100),
    "macro_f1": Measure("Macro F1", "Mean F1 of the classes. Higher is better.", "%", 100),
    "pseudo_eer": Measure(
        "EER of pseudo-trials", "EER where targets are two parts of one utterance. It needs no labels.", "%", 100
    ),
    "clusters_used": Measure(
        "Clusters in use", "Share of clusters of which the queue holds an utterance.", "%", 100
    ),
    "clusters_suggested": Measure(
        "Suggested clusters", "Where merging costs most at once: with whitening about as many as there are speakers."
    ),
    "objective": Measure(
        "Cosine to centroids", "Mean cosine of references to the centroid of their cluster: how tight clusters are."
    ),
    "repaired": Measure("Repaired clusters", "Clusters that had become empty, and were given points again."),
    "pool_size": Measure("Pool", "Mean number of utterances that a positive is drawn from.", "utterances"),
    "queue_fill": Measure("Queue filled", "How full the queue of positives, or of class features, is.", "%", 100),
    "reference_fill": Measure("References filled", "Share of utterances with a reference in the memory.", "%", 100),
    "prototypes_filled": Measure("Prototypes filled", "Share of classes with a prototype.", "%", 100),
    "rejected": Measure("Rejected rows", "Rows of the epoch that were not finite, or too large for fp16.", "rows"),
    "staleness_steps": Measure("Staleness", "By how many steps the memory's answers were behind, on average.", "steps"),
    "version": Measure("Clusterings", "How many clusterings were made so far."),
    "seconds": Measure("Time of a clustering", "How long the last clustering took.", "s"),
    "train_accuracy": Measure("Training accuracy", "Share of labelled rows that the step classified right.", "%", 100),
    "confident": Measure(
        "Confident pseudo-labels", "Share of unlabelled rows whose pseudo-label is above the threshold.", "%", 100
    ),
    "kept": Measure("Kept pseudo-labels", "Share of rows whose label the gate lets through.", "%", 100),
    "corrected": Measure("Corrected pseudo-labels", "Share of rows that got a sure prediction as label.", "%", 100),
    "teacher_entropy": Measure(
        "Entropy of the teacher", "0 or a constant maximum means that all outputs have become the same.", "nats"
    ),
    "unevenness": Measure(
        "Unevenness of prototypes", "0 if all are used alike; a constant maximum means that one always wins.", "nats"
    ),
    "gradient_norm": Measure("Norm of the gradient", "Before clipping. Peaks are steps that changed a lot."),
    "gpu_allocated_bytes": Measure("GPU memory in tensors", "Of rank 0, now.", "GB", _GB),
    "gpu_peak_bytes": Measure("GPU memory, peak", "Of rank 0, in tensors, since the last value.", "GB", _GB),
    "gpu_reserved_bytes": Measure("GPU memory reserved", "Of rank 0, held by torch.", "GB", _GB),
}  # fmt: skip
_TERMS = {
    "ntxent": "NT-Xent", "infonce": "InfoNCE", "swav": "SwAV", "dino": "DINO", "supcon": "SupCon", "aam": "AAM-softmax",
    "invariance": "Invariance", "variance": "Variance", "covariance": "Covariance", "supervised": "Supervised",
    "pseudo": "Pseudo-labels", "align": "Alignment", "information": "Mutual information", "noise": "Noise consistency",
    "fixmatch": "FixMatch", "sequential": "Sequential consistency", "ccssl": "CCSSL", "ssc": "SSC",
    "sdpn": "SDPN", "diversity": "Diversity of embeddings", "decorrelation": "Decorrelation of dimensions",
}  # fmt: skip


def measure(name: str) -> Measure:
    """What the page says of the figure that is logged as ``name``; of an unknown one its name."""
    if name in _KNOWN:
        return _KNOWN[name]
    if name in _TERMS:
        return Measure(f"Term: {_TERMS[name]}", "A term of the training loss, mean since the last value.")
    return Measure(name, "As the method logs it under this name.")
