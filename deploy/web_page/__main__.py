from cluster.artifacts import cli

cli.main("deploy.web_page")
