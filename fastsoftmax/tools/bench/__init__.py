"""Speed measured beside everybody else: ``fastsoftmax bench``, ``benchmarks/report.py`` and ``pytest benchmarks``.

`inputs`
    The arrays of a case, and how many threads everybody gets.
`libraries`
    Who is compared, one class each: what a user of that library would write.
`cases`
    What is compared: {function: {library: setup}}, its shapes and its yardstick; and whether results agree.
`measure`
    Samples taken in turns, and their medians.
`startup`
    Fresh processes: import, compilation, first call.
`report`
    Tables as Markdown, and JSON.
`pictures`
    Time against classes, against rows, against peers.
`command`
    The command line's part: progress, tables on the terminal, files.
"""
