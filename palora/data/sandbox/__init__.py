"""Foreign code against tests, in two processes. `palora.data.skills.code` starts the first and reads the verdict.

    judge     holds the tests, and runs them; for the solution's functions they call stand-ins
       |      plain values only (`plain`), as lines of JSON: calls one way, results the other
    solution  forked before the judge reads the tests; holds the solution and nothing to find, in a cage (`cage`)

They start without the rest of the package, which is why the imports in here are relative.
So what is expected never is where the solution runs, and `==` is between values that the judge made itself.
"""

WAYS = ("namespaces", "user", "limits")  # to contain a solution, the strongest first: `cage` says what they are
