from deployed import Beside, Deployment


def test_smoke(deployed: Deployment, beside: Beside, undisturbed: str) -> None:
    assert beside.blake3() == undisturbed
    deployed.audited("ended", run="beside")
