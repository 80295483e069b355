"""What this machine's processor can do."""

import torch


def lacks_bfloat16() -> bool:
    """Whether bfloat16 is emulated on this processor: an x86 with no instructions for it.

    False where torch does not tell, as older versions do not, and on other architectures.
    """
    tell = getattr(torch.cpu, "get_capabilities", None)
    told = tell() if tell else {}
    return "avx512_bf16" in told and not (told["avx512_bf16"] or told.get("amx_bf16"))
