"""A file a layout. Each says what it looks for, whether a path has it, and reads its episodes:

LOOKS_FOR                 in words
ENDINGS                   of files that are recordings by themselves
found(path)               whether it is there
episodes(path, camera)    its episodes; `camera` names the pictures where there are several
"""
