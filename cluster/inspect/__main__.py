from cluster.inspect.cli import main

main()
