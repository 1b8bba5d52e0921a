"""The dashboard of training runs: is it training, how fast, how well, on what?"""

from k8s.monitoring.source.grafana import Board, Link, Query, Variable, bars, graph, stat, table
from k8s.monitoring.source.promql import ALERTS, BY_RUN, RUN_NAME, last, of_gpus, of_runs, per_run


def _part_seconds(worker: str) -> str:
    """Seconds of each part of a step, of the mean or the slowest worker."""
    return last("stillhouse_step_part_seconds", f'worker="{worker}"', by="by (cluster, run, part)")


TRAINING = Board(
    title="Training run",
    uid="stillhouse-training",
    description="One distillation run or several: is it training, how fast, how well, on what.",
    variables=(
        Variable("cluster", "Cluster", "label_values(stillhouse_steps, cluster)"),
        Variable("run", "Run", 'label_values(stillhouse_steps{cluster=~"$cluster"}, run)'),
        Variable("node", "GPU node", "label_values(DCGM_FI_DEV_GPU_UTIL, Hostname)"),
    ),
    links=(
        Link("Queue and results", "/d/stillhouse-results"),
        Link("Ray cluster", "/d/rayDefaultDashboard"),
        Link("Ray Train", "/d/rayTrainDashboard"),
    ),
    rows={
        "Is it training?": (
            stat(
                "Progress",
                "Optimizer steps made, of those the run will have.",
                "percentunit",
                Query(f"{last('stillhouse_step')} / {last('stillhouse_steps')}", RUN_NAME),
                width=3,
                low=0,
                high=1,
                decimals=1,
            ),
            stat(
                "Left",
                "Time the remaining steps take at the present pace, over all phases.",
                "s",
                per_run("stillhouse_remaining_seconds"),
                width=3,
            ),
            stat(
                "Last step",
                "Time since an optimizer step was made. Red after ten minutes.",
                "s",
                Query(f"time() - {last('stillhouse_last_step_timestamp_seconds')}", RUN_NAME),
                width=3,
                bad=600,
            ),
            stat("Workers", "Training processes of the run.", "count", per_run("stillhouse_workers"), width=3),
            stat(
                "Silent workers",
                "Workers of nodes whose endpoint does not answer.",
                "count",
                Query(f"{last('stillhouse_workers')} - sum {BY_RUN} ({of_runs('stillhouse_node_workers')})", RUN_NAME),
                width=3,
                bad=1,
            ),
            stat(
                "Started again",
                "Restarts of the workers since the launch of the run, by cause: a death, a drained node, room for "
                "more workers.",
                "count",
                Query(last("stillhouse_restarts_total", by="by (cluster, run, cause)"), "{{cause}}"),
                width=6,
                bad=3,
            ),
            ALERTS,
            table(
                "What is trained",
                "Hyper-parameters of the run; weights are those of the soft, masked-word and cosine loss.",
                "short",
                Query(of_runs("stillhouse_run_info")),
                width=24,
            ),
            graph(
                "Steps",
                "Optimizer steps made. A step down means that the run resumed from a checkpoint.",
                "short",
                per_run("stillhouse_step"),
                Query(last("stillhouse_steps"), f"{RUN_NAME}: to make"),
                width=12,
            ),
            graph(
                "Age of this attempt",
                "Time since the workers started; a restart sets it to 0.",
                "s",
                Query(f"time() - {last('stillhouse_run_start_timestamp_seconds')}", RUN_NAME),
                width=12,
            ),
        ),
        "How fast, against the hardware's peak?": (
            graph("Tokens per second", "Over all workers.", "short", per_run("stillhouse_tokens_per_second")),
            graph(
                "Tokens per second and worker",
                "The same for one worker: comparable between runs of different size. Its alert compares it with "
                "the run's own past.",
                "short",
                Query(f"{last('stillhouse_tokens_per_second')} / {last('stillhouse_workers')}", RUN_NAME),
            ),
            graph(
                "Model FLOPs utilization",
                "Operations that teacher and student ask for, as a share of the peak of all GPUs in this "
                "precision. Only for GPUs whose peak is known (distill/devices); 25 to 50 % is good on a V100.",
                "percentunit",
                per_run("stillhouse_model_flops_utilization_ratio"),
                high=1,
            ),
            graph(
                "Seconds of a step",
                "Wall clock, mean since the last log; validation and checkpoints are left out.",
                "s",
                per_run("stillhouse_step_seconds"),
            ),
            graph(
                "Rows per second",
                "From the count of rows, so it shows pauses as well.",
                "short",
                Query(f"sum {BY_RUN} (rate({of_runs('stillhouse_rows_total')}[$__rate_interval]))", RUN_NAME),
            ),
            bars(
                "Tokens in this time",
                "Trained on within the time that is shown.",
                "short",
                Query(f"sum {BY_RUN} (increase({of_runs('stillhouse_tokens_total')}[$__range]))", RUN_NAME),
            ),
        ),
        "Where does a step go: is data the bottleneck?": (
            graph(
                "Where a step goes",
                "Seconds of a mean step by part, mean over workers, as the device sees them. Communication is what "
                "is waited for, so it holds the wait for the slowest worker as well.",
                "s",
                Query(_part_seconds("mean"), "{{part}}"),
                width=12,
                stacked=True,
            ),
            graph(
                "Slowest worker against the mean",
                "How much longer the slowest worker takes for each part. One worker that is slow in everything is "
                "a hot or capped GPU, or a neighbor on its node.",
                "percentunit",
                Query(f"{_part_seconds('slowest')} / {_part_seconds('mean')} - 1", "{{part}}"),
                width=6,
            ),
            graph(
                "Waiting for data",
                "Share of a step in which the slowest worker's device waited for rows. "
                "Above 15 % data is the bottleneck.",
                "percentunit",
                Query(
                    last("stillhouse_step_part_seconds", 'part="data"', 'worker="slowest"')
                    + f" / sum {BY_RUN} ("
                    + of_runs("stillhouse_step_part_seconds", 'worker="mean"')
                    + ")",
                    RUN_NAME,
                ),
                width=6,
                bad=0.15,
            ),
        ),
        "Is it learning what the teacher knows?": (
            graph(
                "Training loss",
                "By term, of the last logged step: soft targets times temperature squared, masked words, cosine; "
                "total is their weighted sum.",
                "short",
                Query(last("stillhouse_loss_nats", by="by (cluster, run, term)"), "{{term}}"),
                logarithmic=True,
                width=6,
            ),
            graph(
                "Validation loss",
                "The same terms on rows that are never trained on.",
                "short",
                Query(last("stillhouse_validation_loss_nats", by="by (cluster, run, term)"), "{{term}}"),
                logarithmic=True,
                width=6,
            ),
            graph(
                "Loss on hidden words",
                "Held-out words that the input hides; the student's line falls from word counts towards its teacher's.",
                "short",
                Query(last("stillhouse_validation_hidden_loss_nats", by="by (cluster, run, model)"), "{{model}}"),
                low=None,
                width=6,
            ),
            graph(
                "Hidden words right",
                "Share of the hidden words of held-out rows that are predicted exactly; the student's line rises "
                "towards its teacher's.",
                "percentunit",
                Query(last("stillhouse_validation_accuracy_ratio", by="by (cluster, run, model)"), "{{model}}"),
                width=6,
            ),
            graph(
                "Visible words right",
                "Share of the masked words that the input shows (a tenth of them) that are predicted exactly.",
                "percentunit",
                Query(last("stillhouse_validation_visible_accuracy_ratio", by="by (cluster, run, model)"), "{{model}}"),
                high=1,
                width=6,
            ),
            graph(
                "Agreement with the teacher",
                "Share of hidden words of held-out rows for which student and teacher predict the same word.",
                "percentunit",
                per_run("stillhouse_validation_agreement_ratio"),
                high=1,
                width=6,
            ),
            graph(
                "Scores of checkpoints",
                "Checkpoints of the run, fine-tuned as they appear (eval.probes).",
                "percentunit",
                Query(last("stillhouse_probe_score_ratio", by="by (cluster, run, task)"), "{{run}}: {{task}}"),
                low=None,
                width=6,
            ),
            graph(
                "Scored up to step",
                "Optimizer step of the newest checkpoint that has a score.",
                "short",
                Query(last("stillhouse_probe_step", by="by (cluster, run, task)"), "{{run}}: {{task}}"),
                width=6,
            ),
        ),
        "Is the optimization healthy?": (
            graph(
                "Gradient norm",
                "Largest one before clipping since the last log.",
                "short",
                per_run("stillhouse_gradient_norm"),
                width=6,
                logarithmic=True,
            ),
            graph(
                "Learning rate",
                "It rises, then falls to zero at the last step.",
                "sci",
                per_run("stillhouse_learning_rate"),
                width=6,
            ),
            graph(
                "Loss scale",
                "Used by fp16 only. It doubles after many steps without an overflow and halves at each overflow.",
                "short",
                per_run("stillhouse_loss_scale"),
                width=6,
                logarithmic=True,
            ),
            graph(
                "Steps skipped",
                "Because an fp16 gradient overflowed; and steps that ended a run because a loss was not finite.",
                "short",
                Query(
                    f"sum {BY_RUN} (increase({of_runs('stillhouse_skipped_steps_total')}[$__rate_interval]))", "skipped"
                ),
                Query(
                    f"sum {BY_RUN} (increase({of_runs('stillhouse_nonfinite_total')}[$__rate_interval]))", "not finite"
                ),
                width=6,
            ),
        ),
        "Are checkpoints fresh?": (
            graph(
                "Age of the newest checkpoint",
                "The training that a failure would lose. The second line is the time between two checkpoints.",
                "s",
                Query(f"time() - {last('stillhouse_last_checkpoint_timestamp_seconds')}", RUN_NAME),
                Query(
                    f"{last('stillhouse_checkpoint_interval_steps')} * {last('stillhouse_step_seconds')}",
                    f"{RUN_NAME}: interval",
                ),
            ),
            graph(
                "Seconds of a checkpoint",
                "Training pauses while the state is gathered (blocked), and continues while it is written.",
                "s",
                Query(last("stillhouse_checkpoint_seconds", by="by (cluster, run, part)"), "{{part}}"),
            ),
            graph(
                "Bytes of a checkpoint",
                "Weights and two moments in fp32.",
                "bytes",
                per_run("stillhouse_checkpoint_bytes"),
                width=4,
            ),
            bars(
                "Checkpoints that failed",
                "Within the time that is shown. After three in a row the run stops.",
                "short",
                Query(f"sum {BY_RUN} (increase({of_runs('stillhouse_failed_checkpoints_total')}[$__range]))", RUN_NAME),
                width=4,
                decimals=0,
                bad=1,
            ),
        ),
        "Are the GPUs healthy?": (
            graph(
                "GPU utilization",
                "Share of time with a kernel on the GPU. Waiting in a reduction is one too: see power.",
                "percent",
                Query(of_gpus("DCGM_FI_DEV_GPU_UTIL"), "{{Hostname}} {{gpu}}"),
                high=100,
            ),
            graph(
                "Tensor cores",
                "Share of time in which the tensor cores are at work.",
                "percentunit",
                Query(of_gpus("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"), "{{Hostname}} {{gpu}}"),
                high=1,
            ),
            graph(
                "GPU memory",
                "Used, of what the card has.",
                "percentunit",
                Query(
                    f"{of_gpus('DCGM_FI_DEV_FB_USED')} / ({of_gpus('DCGM_FI_DEV_FB_USED')} + "
                    f"{of_gpus('DCGM_FI_DEV_FB_FREE')})",
                    "{{Hostname}} {{gpu}}",
                ),
                high=1,
            ),
            graph(
                "Power",
                "What a GPU draws: the best single sign of real work.",
                "watt",
                Query(of_gpus("DCGM_FI_DEV_POWER_USAGE"), "{{Hostname}} {{gpu}}"),
                width=6,
            ),
            graph(
                "Temperature",
                "Cards lower their clock near 87 °C.",
                "celsius",
                Query(of_gpus("DCGM_FI_DEV_GPU_TEMP"), "{{Hostname}} {{gpu}}"),
                width=6,
                low=None,
                bad=85,
            ),
            graph(
                "Clock of the SMs",
                "A card that is slower than the others slows the whole run.",
                "hertz",
                Query(f"{of_gpus('DCGM_FI_DEV_SM_CLOCK')} * 1e6", "{{Hostname}} {{gpu}}"),
                width=6,
            ),
            bars(
                "Xid errors",
                "Number of the last error that the driver reported; 0 is none.",
                "short",
                Query(of_gpus("DCGM_FI_DEV_XID_ERRORS"), "{{Hostname}} {{gpu}}"),
                width=6,
                bad=1,
                decimals=0,
            ),
        ),
    },
)
