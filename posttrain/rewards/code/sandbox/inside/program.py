"""Which block of a completion is the program. Parsed in the candidate's process, never in the caller's.

The program is the last block that parses and defines a wanted name; otherwise the last that completes the
prompt (a body without its `def`); otherwise the last that parses; otherwise the syntax error is the verdict.
A prompt that is code runs before the program, for its imports and helpers. Blocks are never joined.
"""

import ast


def choose(blocks, prompt, names):
    """([code objects to run in order], the source, None), or (None, "", why nothing parses)."""
    wanted = set(names)
    if len(blocks) == 1 and wanted:  # the usual case; building a tree takes longer than compiling
        code = compiles(blocks[0])
        if code is not None and any(type(c) is type(code) and c.co_name in wanted for c in code.co_consts):
            return [*before(prompt), code], blocks[0], None
    parsed = []
    for block in reversed(blocks):
        tree, code = parses(block)
        if code is not None and (not wanted or wanted & defined(tree)):
            return [*before(prompt), code], block, None
        parsed.append((block, code))
    for block, _ in parsed if prompt else ():
        whole = prompt.rstrip("\n") + "\n" + block.rstrip()
        if block[:1] in (" ", "\t", "\n"):  # a body; text at the margin does not continue the prompt
            code = parses(whole)[1]
            if code is not None:
                return [code], whole, None
    for block, code in parsed:
        if code is not None:
            return [*before(prompt), code], block, None
    try:
        compile(blocks[-1], "solution.py", "exec", dont_inherit=True)
    except SyntaxError as error:
        return None, "", f"syntax error: {error.msg}, line {error.lineno}"
    except (ValueError, RecursionError, MemoryError) as error:
        return None, "", f"syntax error: {type(error).__name__}"
    return None, "", "syntax error"


def before(prompt):
    """[the code of the prompt], which runs before the program; empty if the prompt is not code."""
    code = prompt_code(prompt)[1]
    return [] if code is None else [code]


def prompt_code(prompt):
    """(tree, code) of a prompt that defines something, otherwise (None, None): a single word compiles too."""
    tree, code = parses(prompt) if prompt else (None, None)
    return (None, None) if tree is None or not defined(tree) else (tree, code)


def parses(source):
    """(tree, code) of a source, or (None, None) if it does not compile."""
    code = compiles(source)
    return (None, None) if code is None else (ast.parse(source), code)


def compiles(source):
    """The code of a module, or None if it does not compile."""
    try:
        return compile(source, "solution.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def defined(tree):
    """The names that a module binds at its top level."""
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update((a.asname or a.name).partition(".")[0] for a in node.names)
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            names |= defined(ast.Module(body=node.body, type_ignores=[]))
    return names
