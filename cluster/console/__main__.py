from cluster.console.cli import main

main()
