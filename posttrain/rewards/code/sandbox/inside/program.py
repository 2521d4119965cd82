"""Which program a completion means: chosen and parsed here, in the candidate's process, never in the caller's.

Policy: of several blocks the last that parses and defines a wanted name; else the last that, put behind the prompt,
completes it (a body without its `def`); else the last that parses; else its syntax error is the verdict. Where the
prompt is code it stands before the program, for its imports and helpers. Blocks are never joined.
"""

import ast


def choose(blocks, prompt, names):
    """([code to run in order], its source, None), or (None, "", why it does not parse)."""
    wanted = set(names)
    if len(blocks) == 1 and wanted:  # the usual case, without a tree: that takes longer than compiling
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
        if block[:1] in (" ", "\t", "\n"):  # a body; what stands at the margin is no continuation
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
    """The prompt as code to run before the program, if it is code."""
    code = prompt_code(prompt)[1]
    return [] if code is None else [code]


def prompt_code(prompt):
    """(tree, code) of a prompt that is code, else (None, None): a lone word compiles and is none."""
    tree, code = parses(prompt) if prompt else (None, None)
    return (None, None) if tree is None or not defined(tree) else (tree, code)


def parses(source):
    """(tree, code), or (None, None)."""
    code = compiles(source)
    return (None, None) if code is None else (ast.parse(source), code)


def compiles(source):
    """The code of a module, or None."""
    try:
        return compile(source, "solution.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def defined(tree):
    """Names that a module binds at its top level."""
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
