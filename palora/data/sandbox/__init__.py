"""Foreign code against tests, in two processes. `palora.data.skills.code` starts them and reads the verdict.

    judge     holds the tests, and runs them; for the solution's functions they call stand-ins
       |      plain values only (`plain`), as lines of JSON: calls one way, results the other
    solution  holds the solution and nothing to find, in a cage (`cage`)

The processes start without the rest of the package, which is why the imports in here are relative.
So what is expected never is where the solution runs, and `==` is between values that the judge made itself.
"""
