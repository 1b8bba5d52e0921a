from cluster.artifacts import cli

cli.main("distill.train")
