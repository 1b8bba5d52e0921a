from deploy.ask.cli import main

main()
