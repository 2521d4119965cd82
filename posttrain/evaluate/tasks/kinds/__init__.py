"""The kinds of tasks, a file each: what a task file of the kind may say, and how it is measured."""
