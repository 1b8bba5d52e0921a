from cluster.artifacts import cli

cli.main("cluster.tokens")
