import typer

app = typer.Typer()


@app.command("build")
def build() -> None:
    "x"
