import click


@click.command()
def compare_command():
    pass
