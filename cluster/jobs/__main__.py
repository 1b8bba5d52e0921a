from cluster.jobs.cli import main

main()
