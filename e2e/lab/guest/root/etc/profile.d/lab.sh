export PYTHONPATH=/opt/kubeflash/app:/opt/kubeflash/deps PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export TERM=vt100 PS1='\h# '
