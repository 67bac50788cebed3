"""The speed beside other libraries: ``fastsoftmax bench``, ``benchmarks/report.py`` and ``pytest benchmarks``.

`inputs`
    The arrays of a case, and the number of threads of all libraries.
`libraries`
    A class for each library that is compared, with the calls that its users would write.
`cases`
    The functions that are compared, with their shapes and yardsticks, and the check that results agree.
`measure`
    Samples of each library in time windows of its own, and their medians.
`session`
    The chosen cases one after the other, with all threads here and with one in another process.
`journal`
    Finished rows on disk, so that a run that was stopped can be continued.
`startup`
    Fresh processes: import, compilation, first call.
`report`
    Tables as Markdown, and JSON.
`maps`
    Our time relative to the best peer's, for many shapes and functions.
`pictures`
    Time against classes, against rows, against peers; maps.
`command`
    The command: progress, tables on the terminal, files.
"""
