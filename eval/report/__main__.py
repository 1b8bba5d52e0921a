from cluster.artifacts import cli

cli.main("eval.report")
