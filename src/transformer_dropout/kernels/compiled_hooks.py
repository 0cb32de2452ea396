"""What `torch.compile` must be told about hooks."""


def let_compiler_see_hooks() -> None:
    """Make ``torch.compile`` look at hooks before it reuses a compiled graph.

    By default it does not: the graph of a plain model would then serve a regularized one of the same class,
    and no layer would act, in silence.
    """
    import torch._dynamo

    if torch._dynamo.config.skip_nnmodule_hook_guards:
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        # Graphs compiled until now were made without the look.
        torch._dynamo.reset()
