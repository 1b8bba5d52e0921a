"""DeepSpeed: process group, teacher and student engines, step timing.

Importing the package patches DeepSpeed before any of its modules uses it.
"""

from distill.engine import deepspeed_patches as deepspeed_patches
