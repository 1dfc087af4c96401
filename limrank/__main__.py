from limrank.cli import run

run()
