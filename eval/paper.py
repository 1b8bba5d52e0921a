"""What the DistilBERT paper published, as data.

Sanh, Debut, Chaumond, Wolf: DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter (2019),
arXiv 1910.01108. Scores are table 1 (GLUE development sets, medians of five seeds) and table 2 (IMDb test, SQuAD 1.1
development set); sizes and seconds are table 3; the cost is section 3 ("Data and compute power").
"""

from dataclasses import dataclass

SOURCE = "Sanh et al. 2019, arXiv 1910.01108"
CLAIM = "DistilBERT keeps 97 % of BERT-base's GLUE score (77.0 of 79.5) with 40 % fewer parameters"
TARGET_PERCENT = 97.0


@dataclass(frozen=True)
class PaperScore:
    """One task's published scores, in percent."""

    title: str
    bert_base: float
    distilbert: float
    note: str = ""

    @property
    def kept(self) -> float:
        """DistilBERT's share of BERT-base's score, in percent."""
        return 100 * self.distilbert / self.bert_base


SCORES = {
    "cola": PaperScore("CoLA", 56.3, 51.3),
    "mnli": PaperScore("MNLI", 86.7, 82.2, "BERT-base is printed as 86.7; 84.7 would give the paper's own mean"),
    "mrpc": PaperScore("MRPC", 88.6, 87.5),
    "qnli": PaperScore("QNLI", 91.8, 89.2),
    "qqp": PaperScore("QQP", 89.6, 88.5),
    "rte": PaperScore("RTE", 69.3, 59.9),
    "sst2": PaperScore("SST-2", 92.7, 91.3),
    "stsb": PaperScore("STS-B", 89.0, 86.9),
    "wnli": PaperScore("WNLI", 53.5, 56.3),
    "imdb": PaperScore("IMDb", 93.46, 92.82),
    "squad": PaperScore("SQuAD 1.1", 88.5, 85.8, "F1; exact match 81.2 and 77.7; with the second step 86.9 and 79.1"),
}


@dataclass(frozen=True)
class PaperSpeed:
    """One full pass over the STS-B development set on one CPU."""

    model: str
    parameters: int
    seconds: float


SPEEDS = (
    PaperSpeed("ELMo", 180_000_000, 895.0),
    PaperSpeed("BERT-base", 110_000_000, 668.0),
    PaperSpeed("DistilBERT", 66_000_000, 410.0),
)
PAIRS = 1500
SPEED_CONDITIONS = f"{PAIRS:,} sentence pairs of STS-B, batch 1, Intel Xeon E5-2690 v3"

GPU = "V100 16 GB"
GPUS = 8
HOURS = 90
GPU_HOURS = GPUS * HOURS


def key(task: str) -> str:
    """A task's key here, however it is spelled: ``SST-2``, ``sst_2`` and ``sst2`` are one task."""
    return "".join(letter for letter in task.lower() if letter.isalnum())


def find(task: str) -> PaperScore | None:
    """The published scores of a task, None for a task that is not in the paper."""
    return SCORES.get(key(task))
