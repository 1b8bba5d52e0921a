"""The commands in the order of a pipeline, with a line about each and the recipes that ship for it."""

from dataclasses import dataclass

from cluster.artifacts.names import word_of


@dataclass(frozen=True)
class CatalogueEntry:
    """A stage or command by its registered name."""

    name: str
    summary: str
    recipes: tuple[str, ...] = ()
    """Names of the shipped recipes that it reads."""

    @property
    def word(self) -> str:
        return word_of(self.name)


OWN = (
    CatalogueEntry("new", "write a recipe to change, with every key explained"),
    CatalogueEntry("recipes", "list the recipes that ship, and the keys of their tables"),
    CatalogueEntry("show", "print every value of a recipe with its documentation"),
    CatalogueEntry("completion", "print a completion script for bash, zsh or fish"),
)
"""Commands of the console itself."""

GROUPS: dict[str, tuple[CatalogueEntry, ...]] = {
    "Text": (
        CatalogueEntry("cluster.corpus", "clean and deduplicate text sources", ("installed-docs",)),
        CatalogueEntry("cluster.tokens", "pack a corpus into token rows"),
        CatalogueEntry("cluster.inspect", "summarize an artifact, a run or a pipeline"),
    ),
    "Training": (
        CatalogueEntry("distill.teacher", "import a teacher or train one"),
        CatalogueEntry("distill.train", "distil a teacher into a student"),
        CatalogueEntry("distill.export", "export a checkpoint as a student for transformers"),
        CatalogueEntry("distill.follow", "draw a run in TensorBoard, Weights & Biases, MLflow or Trackio"),
    ),
    "Pipelines": (
        CatalogueEntry(
            "distill.launch",
            "run a pipeline from text to report on Ray",
            ("demo", "own-text", "gpu-16gb", "gpu-24gb", "real-text", "distilbert"),
        ),
        CatalogueEntry("distill.plan", "predict hours, memory, disk and network of a pipeline"),
        CatalogueEntry("cluster.jobs", "submit, list and cancel jobs of the queue"),
    ),
    "Evaluation": (
        CatalogueEntry("eval.provenance", "make a classification task from a corpus: name the source", ("provenance",)),
        CatalogueEntry("eval.word_order", "make a classification task from a corpus: find swapped words"),
        CatalogueEntry("eval.finetune", "fine-tune a model on a task and score it over several seeds", ("finetune",)),
        CatalogueEntry("eval.bag_of_words", "score a bag of words on a task: what needs no encoder"),
        CatalogueEntry("eval.score", "score a fine-tuned model or an export on its task"),
        CatalogueEntry("eval.probe", "score what a model knows without fine-tuning it: frozen features on a task"),
        CatalogueEntry("eval.probes", "fine-tune and score the checkpoints of a run while it trains"),
        CatalogueEntry(
            "eval.latency", "measure time, memory, size and energy on this machine", ("latency", "baselines")
        ),
        CatalogueEntry("eval.mobile", "measure time on a phone", ("mobile-browser", "mobile-adb", "mobile-proxy")),
        CatalogueEntry("eval.suite", "run all measurements as jobs of the queue", ("glue",)),
        CatalogueEntry("eval.report", "compare all results with the teacher and the paper"),
        CatalogueEntry("eval.card", "fill a model card from a report"),
        CatalogueEntry("eval.push", "push a model and its card to the Hugging Face Hub"),
    ),
    "Exports": (
        CatalogueEntry("deploy.onnx_export", "export a model to ONNX and compare their outputs", ("onnx",)),
        CatalogueEntry("deploy.quantize", "quantize an ONNX export to int8", ("int8", "int8-static")),
        CatalogueEntry("deploy.sensitivity", "find the layers that int8 damages most"),
        CatalogueEntry("deploy.prune_vocabulary", "drop word pieces that a domain never uses"),
        CatalogueEntry("deploy.openvino_export", "export a model to OpenVINO for servers", ("openvino",)),
        CatalogueEntry("deploy.executorch_export", "export a model to ExecuTorch for phones", ("executorch",)),
        CatalogueEntry("deploy.litert_export", "export a model to LiteRT for phones", ("litert",)),
        CatalogueEntry("deploy.coreml_export", "export a model to Core ML for Apple's systems", ("coreml",)),
        CatalogueEntry("deploy.ort_mobile", "convert an ONNX export for ONNX Runtime Mobile"),
        CatalogueEntry("deploy.browser_layout", "lay out an ONNX export for transformers.js"),
        CatalogueEntry("deploy.web_page", "make the page that measures a phone's browser", ("page",)),
        CatalogueEntry("deploy.predict", "ask a model: labels, scores, answers, masked words"),
        CatalogueEntry("deploy.ask", "ask teacher and student side by side on a page, with their times"),
    ),
}

ENTRIES = {entry.name: entry for group in GROUPS.values() for entry in group}
