"""The speed beside other libraries: ``fastsoftmax bench``, ``benchmarks/report.py`` and ``pytest benchmarks``.

`inputs`
    The arrays of a case, and the number of threads of all libraries.
`libraries`
    A class for each library that is compared, with the calls that its users would write.
`cases`
    The functions that are compared, with their shapes and yardsticks, and the check that results agree.
`measure`
    Samples taken in turns, and their medians.
`startup`
    Fresh processes: import, compilation, first call.
`report`
    Tables as Markdown, and JSON.
`pictures`
    Time against classes, against rows, against peers.
`command`
    The command: progress, tables on the terminal, files.
"""
